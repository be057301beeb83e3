/** A page to chat with the model, on the server's own API. */
export const PAGE = `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>hcinfer</title>
<link rel="icon" href="data:,">
<style>
  :root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
  body { max-width: 46rem; margin: 0 auto; padding: 1rem; min-height: 100vh; box-sizing: border-box;
    display: flex; flex-direction: column; gap: 1rem; }
  main { flex: 1; display: flex; flex-direction: column; gap: .75rem; }
  main > div { white-space: pre-wrap; overflow-wrap: anywhere; padding: .5rem .75rem; border-radius: .5rem; }
  .user { background: #8883; align-self: flex-end; }
  .error { color: #c33; }
  header, form { display: flex; gap: .5rem; align-items: baseline; }
  form { position: sticky; bottom: 0; padding: .5rem 0; background: Canvas; }
  header small { flex: 1; opacity: .7; }
  textarea { flex: 1; font: inherit; padding: .5rem; border-radius: .5rem; resize: vertical; }
  button { font: inherit; padding: .4rem 1rem; border-radius: .5rem; }
</style>
<header><strong id="model">hcinfer</strong><small id="speed"></small><button id="reset">New chat</button></header>
<main id="chat" aria-live="polite"></main>
<form id="form"><textarea id="text" rows="2" placeholder="Message (Enter sends, Shift+Enter: new line)" autofocus></textarea>
<button id="send">Send</button></form>
<script>
const $ = (id) => document.getElementById(id);
let key = sessionStorage.getItem("key") ?? "", messages = [], running, model;
async function call(path, init = {}) {
  const headers = { "Content-Type": "application/json", ...(key ? { Authorization: "Bearer " + key } : {}) };
  const response = await fetch(path, { ...init, headers });
  if (response.status === 401) {
    key = prompt("This server asks for its API key") ?? "";
    sessionStorage.setItem("key", key);
    if (key) return call(path, init);
  }
  if (!response.ok) throw new Error((await response.json()).error?.message ?? response.statusText);
  return response;
}
function show(role, text) {
  const element = document.createElement("div");
  element.className = role;
  element.textContent = text;
  $("chat").append(element);
  return element;
}
async function send(text) {
  show("user", text);
  document.documentElement.scrollTop = document.documentElement.scrollHeight;
  messages.push({ role: "user", content: text });
  const element = show("assistant", ""), began = performance.now();
  let answer = "", rest = "", usage;
  running = new AbortController();
  $("send").textContent = "Stop";
  try {
    model ??= (await (await call("/v1/models")).json()).data[0].id;
    $("model").textContent = model;
    const body = JSON.stringify({ model, messages, stream: true, stream_options: { include_usage: true } });
    const response = await call("/v1/chat/completions", { method: "POST", body, signal: running.signal });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let next; !(next = await reader.read()).done;) {
      const lines = (rest + next.value).split("\\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data: {")) continue;
        const chunk = JSON.parse(line.slice(6));
        if (chunk.error) throw new Error(chunk.error.message);
        answer += chunk.choices[0]?.delta.content ?? "";
        usage = chunk.usage ?? usage;
        const page = document.documentElement;
        const isAtEnd = page.scrollHeight - page.scrollTop - page.clientHeight < 80;
        element.textContent = answer;
        if (isAtEnd) page.scrollTop = page.scrollHeight;
      }
    }
  } catch (error) {
    if (error.name !== "AbortError") show("error", error.message);
  }
  if (answer) messages.push({ role: "assistant", content: answer });
  else messages.pop();
  const seconds = (performance.now() - began) / 1000;
  if (usage) $("speed").textContent = usage.completion_tokens + " tokens in " + seconds.toFixed(1) + " s";
  $("send").textContent = "Send";
  running = undefined;
}
$("form").onsubmit = (event) => {
  event.preventDefault();
  if (running) return running.abort();
  const text = $("text").value;
  $("text").value = "";
  if (text.trim()) send(text);
};
$("text").onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!running) $("form").requestSubmit();
};
$("reset").onclick = () => {
  running?.abort();
  messages = [];
  $("chat").textContent = "";
};
</script>
</html>
`;
