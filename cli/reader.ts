/**
 * Lines that a person types at a terminal, with editing and a history. Between lines the terminal is as it was, so that
 * Ctrl-C is a signal there. Prompts go to standard error: standard output is for answers.
 */
import process from "node:process";
import { createInterface } from "node:readline";

/** A line, or one that Ctrl-C has abandoned. */
export interface TypedLine {
  readonly text: string;
  readonly abandoned: boolean;
}

const MOST_LINES = 1000;

/** Lines that come within this time of each other were pasted, and are one message. */
const PASTE_MILLISECONDS = 20;

/**
 * A function that reads the next line after a prompt; undefined is the end: Ctrl-D, or Ctrl-C twice at an empty line, of
 * which the first shows `hint`.
 */
export function reader(hint: string): (prompt: string) => Promise<TypedLine | undefined> {
  /** Newest first. */
  const history: string[] = [];
  let warned = false;
  return async (prompt) => {
    const line = await readLine(prompt, [...history]);
    if (line === undefined) return undefined;
    if (!line.abandoned) {
      warned = false;
      const text = line.text.replaceAll("\n", " ");
      if (text.trim() !== "" && text !== history[0]) history.unshift(text);
      history.length = Math.min(history.length, MOST_LINES);
      return line;
    }
    if (line.text !== "") return line;
    if (warned) return undefined;
    warned = true;
    process.stderr.write(`${hint}\n`);
    return line;
  };
}

function readLine(prompt: string, history: string[]): Promise<TypedLine | undefined> {
  const { stdin: input, stderr: output } = process;
  const lines = createInterface({ input, output, terminal: true, history, historySize: MOST_LINES });
  return new Promise((resolve) => {
    const pasted: string[] = [];
    const end = (line?: TypedLine) => {
      resolve(line);
      lines.close();
    };
    lines.on("line", (text) => {
      pasted.push(text);
      if (pasted.length > 1) return;
      setTimeout(() => {
        if (lines.line !== "") pasted.push(lines.line);
        end({ text: pasted.join("\n"), abandoned: false });
      }, PASTE_MILLISECONDS);
    });
    lines.on("SIGINT", () => {
      output.write("\n");
      end({ text: lines.line, abandoned: true });
    });
    // Ctrl-D; after another end this does nothing.
    lines.on("close", () => resolve(undefined));
    lines.setPrompt(prompt);
    lines.prompt();
  });
}
