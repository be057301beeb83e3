/** Whether there is a GPU, in words. */
import { HcinferError } from "../compiler/errors.ts";
import { devices } from "../ffi/cuda/context.ts";
import { Driver } from "../ffi/cuda/driver.ts";

/** Why no GPU can be used here, in one line; undefined where one can. */
export function gpuProblem(): string | undefined {
  try {
    devices(Driver.open());
    return undefined;
  } catch (error) {
    if (!(error instanceof HcinferError && error.kind === "environment")) throw error;
    // Every name that the driver's library might have failed for the same reason.
    return error.message.split("; ")[0]!.replaceAll("\n", ", ");
  }
}
