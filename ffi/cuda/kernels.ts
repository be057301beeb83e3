/** All kernels of a device: their images, loaded when one is first asked for. */
import { existsSync, readFileSync } from "node:fs";
import { HcinferError } from "../../compiler/errors.ts";
import type { Context } from "./context.ts";
import { SIMULATOR_KERNELS } from "./driver.ts";
import { type KernelFunction, Module } from "./module.ts";

/** Compute capabilities that PTX is written for (kernels/*.cu): a device takes the highest that it has. */
const ARCHITECTURES = [80, 75] as const;

export class Kernels implements Disposable {
  readonly #modules = new Map<string, Module>();

  constructor(readonly context: Context) {}

  /** @param module the file in kernels/, without its ending */
  function(module: string, kernel: string): KernelFunction {
    const { path, name } = this.#image(module);
    let loaded = this.#modules.get(name);
    if (loaded === undefined) {
      loaded = new Module(this.context, name, read(path));
      this.#modules.set(name, loaded);
    }
    return loaded.function(kernel);
  }

  /** On the simulator one library has all modules. */
  #image(module: string): { readonly path: string | URL; readonly name: string } {
    if (this.context.driver.kind === "sim") {
      return { path: SIMULATOR_KERNELS, name: "the simulator's kernels" };
    }
    const names = ARCHITECTURES.filter((least) => least <= this.context.device.capability)
      .map((architecture) => `${architecture}/${module}.ptx`);
    const images = names.map((name) => ({ path: new URL(`./ptx/${name}`, import.meta.url), name }));
    // Sources without anything of a newer architecture are compiled for the least alone.
    return images.find(({ path }) => existsSync(path)) ?? images[0]!;
  }

  [Symbol.dispose](): void {
    for (const module of this.#modules.values()) module[Symbol.dispose]();
    this.#modules.clear();
  }
}

function read(path: string | URL): Uint8Array {
  try {
    return readFileSync(path);
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new HcinferError(
      "environment",
      `the GPU's kernels cannot be read: ${reason}\nrun: deno task build:cuda`,
      {
        cause: error,
      },
    );
  }
}
