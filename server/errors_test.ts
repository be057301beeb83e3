import assert from "node:assert/strict";
import { HcinferError } from "../compiler/errors.ts";
import { Busy } from "../runtime/batch.ts";
import { ApiError, apiError } from "./errors.ts";

Deno.test("what went wrong in the server names none of its files", () => {
  const cause = new Error("roles must alternate");
  const refused = apiError(
    new HcinferError("checkpoint", "the chat template of /models/a failed", { cause }),
  );
  assert.equal(refused.status, 400);
  assert.match(refused.message, /^the model's template .*: roles must alternate$/);
  for (
    const error of [
      new Error("/models/a is gone"),
      new HcinferError("bundle", "/models/a is broken"),
      "/models/a",
    ]
  ) {
    const { status, message } = apiError(error);
    assert.equal(status, 500);
    assert.doesNotMatch(message, /models/);
  }
});

Deno.test("a full queue, a closing server, and an answer that is one already", () => {
  assert.equal(apiError(new Busy("64 requests are waiting")).status, 429);
  assert.equal(apiError(new Busy("no more requests are taken", true)).status, 503);
  const answer = new ApiError(404, "none", { code: "not_found" });
  assert.equal(apiError(answer), answer);
  assert.deepEqual(answer.body(), {
    error: { message: "none", type: "invalid_request_error", param: null, code: "not_found" },
  });
});
