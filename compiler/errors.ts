/**
 * The errors a user can cause. Each says what was found, what was expected and what to do; the command line prints
 * `message` without a stack trace and exits with `exitCode`.
 */

export type ErrorKind =
  | "usage" // contradictory or impossible options
  | "model-description" // a graphs/*.py file that does not parse or trace
  | "checkpoint" // config.json, safetensors, tokenizer files
  | "bundle" // a bundle that is truncated, edited or of another version
  | "environment" // no compiler, no library, no space, an old CPU
  | "input"; // prompts and tokens

const EXIT_CODES: Readonly<Record<ErrorKind, number>> = {
  usage: 2,
  "model-description": 3,
  checkpoint: 4,
  bundle: 5,
  environment: 6,
  input: 7,
};

export class HcinferError extends Error {
  override readonly name = "HcinferError";

  constructor(readonly kind: ErrorKind, message: string, options?: ErrorOptions) {
    super(message, options);
  }

  get exitCode(): number {
    return EXIT_CODES[this.kind];
  }
}
