/** Errors in the API's shape: a status, and {error: {message, type, param, code}}. */
import { z } from "zod";
import { HcinferError } from "../compiler/errors.ts";
import { Busy } from "../runtime/batch.ts";

export type ErrorStatus = 400 | 401 | 403 | 404 | 405 | 413 | 429 | 500 | 503;

/** An answer that says what was wrong with the request. */
export class ApiError extends Error {
  override readonly name = "ApiError";

  constructor(
    readonly status: ErrorStatus,
    message: string,
    readonly details: { readonly param?: string; readonly code?: string } = {},
  ) {
    super(message);
  }

  body() {
    const { param = null, code = null } = this.details;
    return { error: { message: this.message, type: TYPES[this.status], param, code } };
  }
}

const TYPES: Readonly<Record<ErrorStatus, string>> = {
  400: "invalid_request_error",
  401: "invalid_request_error",
  403: "invalid_request_error",
  404: "invalid_request_error",
  405: "invalid_request_error",
  413: "invalid_request_error",
  429: "rate_limit_error",
  500: "server_error",
  503: "server_error",
};

/** Whatever was thrown, as an answer. What a client did not cause says nothing of this machine. */
export function apiError(error: unknown): ApiError {
  if (error instanceof ApiError) return error;
  if (error instanceof Busy) {
    return new ApiError(error.isClosing ? 503 : 429, error.message, { code: "overloaded" });
  }
  if (error instanceof z.ZodError) return invalid(error);
  // A template may refuse a conversation: its own words are for who wrote that, the path of its file is not.
  if (error instanceof HcinferError && error.kind === "checkpoint") {
    const why = error.cause instanceof Error ? `: ${error.cause.message}` : "";
    return new ApiError(400, `the model's template or tokenizer does not take this${why}`);
  }
  if (error instanceof HcinferError && (error.kind === "input" || error.kind === "usage")) {
    return new ApiError(400, error.message);
  }
  return new ApiError(500, "the request could not be answered: the server's log says why");
}

function invalid(error: z.ZodError): ApiError {
  const [issue] = error.issues;
  if (issue === undefined) return new ApiError(400, "the request is not valid");
  const unknown = issue.code === "unrecognized_keys" ? issue.keys[0] : undefined;
  const path = [...issue.path, ...(unknown === undefined ? [] : [unknown])].join(".");
  const message = unknown === undefined
    ? `${path || "the body"}: ${issue.message}`
    : `${path} is not supported here: leave it out`;
  return new ApiError(400, message, {
    param: path,
    code: unknown === undefined ? "invalid_value" : "unknown_parameter",
  });
}
