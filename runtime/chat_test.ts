import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { HcinferError } from "../compiler/errors.ts";
import { ChatTemplate } from "./chat.ts";
import { folderFiles } from "./text_files.ts";
import { Tokenizer } from "./tokenizer.ts";

const tinyDense = fileURLToPath(new URL("../examples/models/tiny-dense", import.meta.url));

Deno.test("the bundled model's template", () => {
  const tokenizer = Tokenizer.open(folderFiles(tinyDense), 4096);
  const chat = ChatTemplate.open(folderFiles(tinyDense), tokenizer.config);
  const messages = [{ role: "system", content: "Be brief." }, { role: "user", content: "Hi" }];
  const text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n";
  assert.equal(chat.render(messages), text + "<|im_start|>assistant\n");
  assert.equal(chat.render(messages, { addGenerationPrompt: false }), text);
  const ids = tokenizer.encode(chat.render(messages), { addSpecialTokens: false });
  assert.equal(ids.filter((id) => id === tokenizer.idOf("<|im_start|>")).length, 3);
});

Deno.test("a template of the Llama kind: special tokens, errors of its own", () => {
  const text = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('user first') }}{% endif %}" +
    "{{ bos_token }}{% for m in messages %}[{{ m.content | trim }}]{{ eos_token }}{% endfor %}{{ extra }}";
  const chat = new ChatTemplate(text, "some/file", { bos_token: "<s>", eos_token: "</s>" });
  const messages = [{ role: "user", content: " a " }];
  assert.equal(chat.render(messages, { variables: { extra: "!" } }), "<s>[a]</s>!");
  assert.throws(
    () => chat.render([{ role: "system", content: "" }]),
    (error) => error instanceof HcinferError && /some\/file failed: user first/.test(error.message),
  );
});

Deno.test("where templates are found", () => {
  const folder = mkdtempSync(join(tmpdir(), "hcinfer-"));
  try {
    assert.equal(ChatTemplate.find(folderFiles(folder), {}), undefined);
    assert.throws(() => ChatTemplate.open(folderFiles(folder), {}), /has no chat template/);
    const named = [{ name: "tool_use", template: "T" }, { name: "default", template: "D" }];
    assert.equal(ChatTemplate.open(folderFiles(folder), { chat_template: named }).render([]), "D");
    writeFileSync(join(folder, "chat_template.jinja"), "J");
    assert.equal(ChatTemplate.open(folderFiles(folder), { chat_template: "C" }).render([]), "J");
    writeFileSync(join(folder, "chat_template.jinja"), "{% if %}");
    assert.throws(
      () => ChatTemplate.open(folderFiles(folder), {}),
      (error) => error instanceof HcinferError && /chat_template\.jinja failed/.test(error.message),
    );
  } finally {
    rmSync(folder, { recursive: true });
  }
});

function refuses(message: RegExp): (error: unknown) => boolean {
  return (error) =>
    error instanceof HcinferError && error.kind === "checkpoint" && message.test(error.message);
}

Deno.test("a template that does not end is stopped", () => {
  const loops = "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}";
  const chat = new ChatTemplate(loops, "some/file.jinja", {});
  assert.throws(
    () => chat.render([{ role: "user", content: "hi" }]),
    refuses(/^rendering the chat template of some\/file.jinja took more than \d+ s and was stopped/),
  );
});

Deno.test("a template's size and its text's are bounded", () => {
  assert.throws(
    () => new ChatTemplate("x".repeat(2 ** 20 + 1), "file", {}),
    refuses(/it has 1048577 characters/),
  );
  const doubling = "{% set ns = namespace(x='0123456789abcdef') %}{% for i in range(24) %}" +
    "{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}";
  assert.throws(
    () => new ChatTemplate(doubling, "file", {}).render([]),
    refuses(/what it wrote has \d+ char/),
  );
});
