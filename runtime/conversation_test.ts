import assert from "node:assert/strict";
import { HcinferError } from "../compiler/errors.ts";
import { RandomExecutor } from "../tests/fixtures/random_executor.ts";
import { ChatTemplate } from "./chat.ts";
import { Conversation, type ConversationOptions, type TextCoding } from "./conversation.ts";
import { type GenerateOptions, Session } from "./session.ts";

/** Longest match first, so that "ab" has one token when it is read, and may have two when a model writes it. */
const TOKENS = ["[", "]", "a", "b", "c", "d", "\n", "ab"];
const BEGIN = 5;

const tokenizer: TextCoding = {
  encode(text, { addSpecialTokens = true } = {}) {
    const ids = addSpecialTokens ? [BEGIN] : [];
    for (let at = 0; at < text.length;) {
      const id = Math.max(
        TOKENS.indexOf(text[at]!),
        text.startsWith("ab", at) ? TOKENS.indexOf("ab") : -1,
      );
      ids.push(id);
      at += TOKENS[id]!.length;
    }
    return Int32Array.from(ids);
  },
  decode: (ids) => Array.from(ids, (id) => TOKENS[id]).join(""),
};

const TEMPLATE =
  "{% for m in messages %}[{{ m.content }}]{% endfor %}{% if add_generation_prompt %}[{% endif %}";

function talk(
  given: Partial<ConversationOptions> = {},
  template: string | undefined = TEMPLATE,
  context = 64,
) {
  const executor = new RandomExecutor(1, 16, context);
  const options = {
    tokenizer,
    template: template === undefined ? undefined : new ChatTemplate(template, "template", {}),
    ...given,
  };
  const session = new Session(executor);
  const conversation = new Conversation(session, options);
  /** The answer, its statistics, and the tokens that the prompt had to compute. */
  const ask = async (text: string, options: GenerateOptions = { maxTokens: 4 }) => {
    const before = executor.asked.length;
    let answer = "";
    const statistics = await conversation.ask(text, options, (piece) => answer += piece);
    const runs = executor.asked.slice(before).filter(({ as }) => as === "prefill");
    return { answer, ...statistics, computed: tokenizer.decode(runs.flatMap(({ tokens }) => [...tokens])) };
  };
  return { ask, conversation, session };
}

Deno.test("a turn computes only what is new in it", async () => {
  const { ask, session } = talk({ system: "c" });
  const first = await ask("ab");
  assert.deepEqual([first.computed, first.cachedTokens, first.promptTokens], ["[c][ab][", 0, 7]);
  const second = await ask("b");
  // The last token of an answer that is cut off was not computed yet.
  assert.equal(second.computed, `${tokenizer.decode([session.tokens[10]!])}][b][`);
  assert.equal(second.cachedTokens, 10);
  const third = await ask("c");
  const whole = `[c][ab][${first.answer}][b][${second.answer}][c][${third.answer}`;
  const cached = tokenizer.decode(session.tokens);
  assert.ok(whole.startsWith(cached) && whole.length - cached.length <= 2, `${whole} ${cached}`);
});

Deno.test("a template that changes earlier answers is computed from where it differs", async () => {
  const changing = "{% for m in messages %}[{{ 'd' if m.role == 'assistant' else m.content }}]{% endfor %}[";
  const { ask } = talk({}, changing);
  await ask("ab");
  const { computed, cachedTokens } = await ask("b");
  assert.equal(`${"[ab]["}d][b][`.endsWith(computed), true);
  assert.ok(cachedTokens >= 4);
});

Deno.test("an answer that a text ended is remembered without it", async () => {
  const whole = await talk().ask("ab");
  const stop = whole.answer.slice(2, 3);
  const { ask, session } = talk();
  const { answer, end } = await ask("ab", { maxTokens: 4, stopTexts: [stop] });
  assert.deepEqual([answer, end], [whole.answer.slice(0, whole.answer.indexOf(stop)), "text"]);
  await ask("c", { maxTokens: 1 });
  assert.equal(tokenizer.decode(session.tokens), `[ab][${answer}][c][`);
});

Deno.test("an aborted answer stays as far as it came; one that had not begun is forgotten", async () => {
  const { ask, session, conversation } = talk();
  const controller = new AbortController();
  let answer = "";
  const options = { signal: controller.signal, maxTokens: 9 };
  const { end } = await conversation.ask("ab", options, (piece) => {
    answer += piece;
    if (answer.length >= 2) controller.abort();
  });
  assert.equal(end, "aborted");
  await ask("c", { signal: controller.signal });
  await ask("b", { maxTokens: 1 });
  assert.equal(tokenizer.decode(session.tokens), `[ab][${answer}][b][`);
});

Deno.test("after a reset the system message is there, and still cached", async () => {
  const { ask, conversation } = talk({ system: "c" });
  await ask("ab");
  conversation.reset();
  const { computed, cachedTokens } = await ask("b");
  assert.deepEqual([computed, cachedTokens], ["b][", 4]);
});

Deno.test("without a template, turns are lines of one text", async () => {
  const { ask, session } = talk({ template: undefined });
  const first = await ask("ab");
  const second = await ask("c", { maxTokens: 1 });
  assert.equal(tokenizer.decode(session.tokens), `dab${first.answer}\nc`);
  assert.equal(second.answer.length > 0, true);
  assert.throws(
    () => talk({ template: undefined, system: "c" }),
    (error) => error instanceof HcinferError && /no place for a system message/.test(error.message),
  );
});

Deno.test("a conversation that outgrows the context says so, and goes on after a reset", async () => {
  const { ask, conversation, session } = talk({}, TEMPLATE, 12);
  const { end } = await ask("ab", { maxTokens: 99 });
  assert.deepEqual([end, session.position], ["context", 12]);
  await assert.rejects(
    ask("c"),
    (error) =>
      error instanceof HcinferError &&
      /would have 1\d tokens with this, the context holds 12/.test(error.message),
  );
  conversation.reset();
  assert.equal((await ask("c")).computed, "c][");
});
