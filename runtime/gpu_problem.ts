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
    // All names that the driver's library might have fail for the same reason.
    return error.message.replace(/(; \S+ does not load: [^;]*)+$/, "").replaceAll("\n", ", ");
  }
}
