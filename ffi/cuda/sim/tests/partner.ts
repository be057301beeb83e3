/** The other side of the kernel `ask_host`, on a thread of its own: adds the turn's number to what it is handed. */
/// <reference lib="deno.worker" />
self.onmessage = ({ data: { flags, mail, n, turns } }) => {
  const view = (address: bigint, bytes: number) =>
    Deno.UnsafePointerView.getArrayBuffer(Deno.UnsafePointer.create(address)!, bytes);
  const words = new Uint32Array(view(flags, 64)), values = new Float32Array(view(mail, 4 * n));
  const idle = new Int32Array(new SharedArrayBuffer(4));
  for (let turn = 1; turn <= turns; turn++) {
    while (Atomics.load(words, 0) !== turn) Atomics.wait(idle, 0, 0, 0.05);
    for (let i = 0; i < n; i++) values[i]! += turn;
    Atomics.store(words, 1, turn);
  }
  self.postMessage("done");
};
