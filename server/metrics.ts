/** What the server has done, in Prometheus' text format. */
import { Counter, Gauge, Histogram, Registry } from "prom-client";
import type { BatchState } from "../runtime/batch.ts";
import type { Usage } from "./text.ts";

const SECONDS = [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100];

export class Metrics {
  readonly #registry = new Registry();
  readonly #requests: Counter<"route" | "status">;
  readonly #tokens: Counter<"kind">;
  readonly #first: Histogram;
  readonly #whole: Histogram;

  /** @param state of the batch, when it is asked */
  constructor(state: () => BatchState) {
    const registers = [this.#registry];
    const labelled = (name: string, help: string) => ({ name: `hcinfer_${name}`, help, registers });
    this.#requests = new Counter({
      ...labelled("requests_total", "Requests answered"),
      labelNames: ["route", "status"],
    });
    this.#tokens = new Counter({
      ...labelled("tokens_total", "Tokens: of prompts, of those found in the cache, generated"),
      labelNames: ["kind"],
    });
    this.#first = new Histogram({
      ...labelled("first_token_seconds", "Until the first text"),
      buckets: SECONDS,
    });
    this.#whole = new Histogram({
      ...labelled("answer_seconds", "Until the whole answer"),
      buckets: SECONDS,
    });
    const texts = new Gauge({
      ...labelled("texts", "Requests, and texts that are kept"),
      labelNames: ["state"],
    });
    const collect = () => {
      for (const [name, count] of Object.entries(state())) texts.set({ state: name }, count);
    };
    this.text = () => {
      collect();
      return this.#registry.metrics();
    };
  }

  readonly text: () => Promise<string>;

  get contentType(): string {
    return this.#registry.contentType;
  }

  answered(route: string, status: number): void {
    this.#requests.inc({ route, status });
  }

  firstToken(seconds: number): void {
    this.#first.observe(seconds);
  }

  ended({ promptTokens, cachedTokens, generatedTokens }: Usage, seconds: number): void {
    this.#tokens.inc({ kind: "prompt" }, promptTokens);
    this.#tokens.inc({ kind: "cached" }, cachedTokens);
    this.#tokens.inc({ kind: "generated" }, generatedTokens);
    this.#whole.observe(seconds);
  }
}
