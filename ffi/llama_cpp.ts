/** llama.cpp's own quantiser, out of a prebuilt libllama: a peer's numbers are made by the peer's code. */
import { HcinferError } from "../compiler/errors.ts";
import { open } from "./open.ts";

/**
 * llama_model_quantize_params begins with the number of threads and the llama_ftype, both i32. What follows differs between
 * releases and is left as the defaults are, so only its size must not be too small (64 bytes in release 0.5): a struct this
 * large is returned in memory of the caller's on every platform.
 */
const PARAMETERS = { struct: Array<"u64">(32).fill("u64") } as const;

const symbols = {
  llama_model_quantize_default_params: { parameters: [], result: PARAMETERS },
  /** (path, path, parameters) -> 0 when it has worked. Not on this thread: it reports its progress through the callback. */
  llama_model_quantize: { parameters: ["buffer", "buffer", "buffer"], result: "u32", nonblocking: true },
  /** (callback or null, its argument) */
  llama_log_set: { parameters: ["function", "pointer"], result: "void" },
} as const;

/** (level, text, argument) */
const LOG = { parameters: ["i32", "pointer", "pointer"], result: "void" } as const;

/**
 * Quantises the GGUF file `input` to the llama_ftype of number `type`, as llama-quantize does without options.
 * `library` is the path of libllama.
 * @throws {HcinferError} "environment", when it does not load, or with what llama.cpp said last, when it fails
 */
export async function quantizeGguf(
  library: string,
  input: string,
  output: string,
  type: number,
  threads: number,
): Promise<void> {
  const llama = open(library, symbols);
  let last = "";
  const log = new Deno.UnsafeCallback(LOG, (_level, text) => {
    if (text !== null) last = Deno.UnsafePointerView.getCString(text).trim() || last;
  });
  try {
    llama.symbols.llama_log_set(log.pointer, null);
    const parameters = llama.symbols.llama_model_quantize_default_params();
    new Int32Array(parameters.buffer, parameters.byteOffset).set([threads, type]);
    const status = await llama.symbols.llama_model_quantize(text(input), text(output), parameters);
    if (status !== 0) throw new HcinferError("environment", `llama.cpp does not quantise ${input}: ${last}`);
  } finally {
    llama.symbols.llama_log_set(null, null);
    log.close();
    llama.close();
  }
}

function text(value: string): Uint8Array<ArrayBuffer> {
  return new TextEncoder().encode(`${value}\0`);
}
