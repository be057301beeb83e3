/** Jinja, in the text thread: a template is a program that need not end. */
import { Template } from "@huggingface/jinja";
import type { TextCalls } from "./text_calls.ts";

/** The largest published templates have 30 kB. */
const MOST_TEMPLATE_CHARACTERS = 1 << 20;

/** Some ten times the longest context that models have. */
const MOST_RENDERED_CHARACTERS = 1 << 26;

/** @throws what the template is no template for */
export function openTemplate(text: string): Pick<TextCalls, "check" | "render"> {
  bound("it", text.length, MOST_TEMPLATE_CHARACTERS);
  const template = new Template(text);
  return {
    check() {},
    render(variables) {
      const rendered = template.render({ ...variables });
      bound("what it wrote", rendered.length, MOST_RENDERED_CHARACTERS);
      return rendered;
    },
  };
}

function bound(what: string, characters: number, most: number): void {
  if (characters > most) throw new Error(`${what} has ${characters} characters, more than ${most}`);
}
