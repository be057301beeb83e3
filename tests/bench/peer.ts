/** Another llama.cpp as the peer, one of its forks: its own `llama-bench`, a process for every measurement. */
import { execFileSync } from "node:child_process";
import { z } from "zod";

/** What llama-bench -o json prints: a record for the prompt and one for decoding. */
const Report = z.array(z.object({ n_prompt: z.int(), n_gen: z.int(), avg_ts: z.number().positive() }));

export interface PeerSpeed {
  /** Tokens per second. */
  readonly prefill: number;
  readonly decode: number;
}

export class PeerBench {
  readonly #command: readonly string[];

  /** @param command a llama-bench, and options of its own behind it: "~/ik/bin/llama-bench -rtr 1" */
  constructor(command: string) {
    this.#command = command.split(/\s+/).filter(Boolean);
  }

  /** Throws where the program fails or prints something else. */
  measure(model: string, prompt: number, tokens: number, threads: number): PeerSpeed {
    const [program = "", ...own] = this.#command;
    const options = { m: model, p: prompt, n: tokens, t: threads, r: 1, o: "json" };
    const args = Object.entries(options).flatMap(([name, value]) => [`-${name}`, `${value}`]);
    const printed = execFileSync(program, [...own, ...args], {
      encoding: "utf8",
      stdio: ["ignore", "pipe", "ignore"],
    });
    const report = Report.parse(JSON.parse(printed));
    const speed = (isWanted: (record: typeof report[number]) => boolean) => {
      const found = report.find(isWanted);
      if (found === undefined) throw new Error(`${program} printed no such test: ${printed.slice(0, 500)}`);
      return found.avg_ts;
    };
    return {
      prefill: speed((record) => record.n_prompt === prompt && record.n_gen === 0),
      decode: speed((record) => record.n_prompt === 0 && record.n_gen === tokens),
    };
  }
}
