/** Ctrl-C, once what was running has ended in order: the command line exits with 130 and says nothing. */
export class Interrupted extends Error {
  override readonly name = "Interrupted";
}
