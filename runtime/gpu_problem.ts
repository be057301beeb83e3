/** Whether there is a GPU, in words. */
import { HcinferError } from "../compiler/errors.ts";
import { devices, requireCapability } from "../ffi/cuda/context.ts";
import { Driver } from "../ffi/cuda/driver.ts";

/** Why no GPU can be used here, in one line; undefined where one can. */
export function gpuProblem(): string | undefined {
  try {
    requireCapability(devices(Driver.open())[0]!);
    return undefined;
  } catch (error) {
    if (!(error instanceof HcinferError && error.kind === "environment")) throw error;
    const [first = "", ...others] = error.message.replaceAll("\n", ", ").split("; ");
    // The names that the driver's library may have are mostly missing for the same reason, which is said once.
    const reason = /: [^:]*$/.exec(first)?.[0];
    return [first, ...others.filter((text) => reason === undefined || !text.endsWith(reason))].join("; ");
  }
}
