import assert from "node:assert/strict";
import { HcinferError } from "../../compiler/errors.ts";
import { Context, devices } from "./context.ts";
import { Driver } from "./driver.ts";
import { Kernels } from "./kernels.ts";
import { testDevice } from "./kernels/fixture.ts";

Deno.test("a kernel is looked up once, and there is one of it", () => {
  const { kernels } = testDevice();
  assert.equal(kernels.function("mirror", "mirror"), kernels.function("mirror", "mirror"));
  assert.notEqual(kernels.function("mirror", "mirror"), kernels.function("embedding", "embedding"));
});

Deno.test("a GPU takes the newest PTX that it can run", () => {
  // The simulator, taken for a GPU.
  const driver = Driver.openFirst("device", [Driver.open("sim").library]), [device] = devices(driver);
  assert.ok(device !== undefined);
  for (
    const [capability, path] of [[75, "75/none.ptx"], [86, "80/none.ptx"], [120, "80/none.ptx"]] as const
  ) {
    using context = Context.retain(driver, { ...device, capability });
    using kernels = new Kernels(context);
    assert.throws(
      () => kernels.function("none", "none"),
      (error) =>
        error instanceof HcinferError && error.kind === "environment" &&
        error.message.startsWith("the GPU's kernels cannot be read: ") && error.message.includes(path),
    );
  }
});
