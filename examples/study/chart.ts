/** The study's figures: bytes read per token against the divergence from bf16, both logarithmic, as SVG by Vega. */
import { parse, type Spec, View } from "vega";
import { SERIES } from "./configurations.ts";
import { placeLabels, type Point } from "./labels.ts";
import { bytesRead, isMeasured, type MeasuredRow, paretoFront, type Study } from "./rows.ts";

const [WIDTH, HEIGHT] = [720, 600];
const FONT_SIZE = 11;
/** Room for labels between the outermost points and the frame, in pixels. */
const MARGIN = 40;

/** What a viewer in dark mode sees instead. Colours of series are read on both. */
const INK = "#24292f", MUTED = "#6e7780", GRID = "#e6eaef", PAPER = "#ffffff";
const DARK = { [INK]: "#e6edf3", [MUTED]: "#9198a1", [GRID]: "#262c36", [PAPER]: "#0d1117" };

const LOOKS: Readonly<Record<(typeof SERIES)[number], { readonly colour: string; readonly shape: string }>> =
  {
    "backbone alone": { colour: "#8a8f98", shape: "square" },
    "rows": { colour: "#2f81d7", shape: "circle" },
    "factors": { colour: "#db6d28", shape: "triangle-up" },
    "rows and factors": { colour: "#a371d7", shape: "diamond" },
    "mixed bits": { colour: "#2da44e", shape: "cross" },
    "llama.cpp": { colour: "#d1435b", shape: "triangle-down" },
  };

/** A figure for every text that has a divergence: kl.svg of the first, kl-<text>.svg of the others. */
export async function figures(study: Study): Promise<{ readonly file: string; readonly svg: string }[]> {
  const rows = study.rows.filter(isMeasured);
  const texts = rows[0]?.result.texts.map(({ text }) => text) ?? [];
  const found = [];
  for (const [i, text] of texts.entries()) {
    const compared = rows.filter(({ result }) => (result.texts[i]?.kl?.mean ?? 0) > 0);
    if (compared.length === 0) continue;
    const file = i === 0 ? "kl.svg" : `kl-${text.replace(/\.[^.]*$/, "")}.svg`;
    found.push({ file, svg: await svgOf(figureSpec(compared, i, `${study.model}, ${text}`)) });
  }
  return found;
}

async function svgOf(spec: Spec): Promise<string> {
  const view = new View(parse(spec), { renderer: "none" });
  try {
    const svg = await view.toSVG();
    const rules = Object.entries(DARK).map(([light, dark]) =>
      `[fill="${light}"]{fill:${dark}}[stroke="${light}"]{stroke:${dark}}`
    );
    const style = `<style>@media (prefers-color-scheme:dark){${rules.join("")}}</style>`;
    return `${svg.replace(/(<svg[^>]*>)/, `$1${style}`)}\n`;
  } finally {
    view.finalize();
  }
}

/** A logarithmic scale of pixels, with a margin on both sides. */
interface Scale {
  readonly domain: readonly [number, number];
  /** Pixels from the scale's start. */
  of(value: number): number;
}

function logScale(values: readonly number[], pixels: number): Scale {
  const least = Math.log(Math.min(...values)), most = Math.log(Math.max(...values));
  // A single value, or values nearly the same, still get a range.
  const room = Math.max((most - least) * MARGIN / (pixels - 2 * MARGIN), 0.05);
  const [from, to] = [least - room, most + room];
  return {
    domain: [Math.exp(from), Math.exp(to)],
    of: (value) => (Math.log(value) - from) / (to - from) * pixels,
  };
}

/** 1, 2 and 5 times powers of ten, and more between them where the range is short. */
function ticks([from, to]: readonly [number, number]): number[] {
  const steps = to / from > 30
    ? [1, 2, 5]
    : [1, 1.25, 1.5, 1.75, 2, 2.25, 2.5, 2.75, 3, 3.25, 3.5, 4, 4.5, 5, 6, 7, 8, 9];
  const found = [];
  for (let power = Math.floor(Math.log10(from)); 10 ** power <= to; power++) {
    for (const step of steps) found.push(Number((step * 10 ** power).toPrecision(3)));
  }
  return found.filter((tick) => tick >= from && tick <= to);
}

/** The figure of one text, as a specification for Vega. */
export function figureSpec(rows: readonly MeasuredRow[], text: number, title: string): Spec {
  const kl = (row: MeasuredRow) => row.result.texts[text]?.kl ?? { mean: NaN, error: null };
  const megabytes = (row: MeasuredRow) => bytesRead(row.result) / 1e6;
  const x = logScale(rows.map(megabytes), WIDTH), y = logScale(rows.map((row) => kl(row).mean), HEIGHT);
  const pointOf = (row: MeasuredRow): Point => ({ x: x.of(megabytes(row)), y: HEIGHT - y.of(kl(row).mean) });

  const front = paretoFront(rows, text);
  // Those on the front get their labels first; the others from above, so that labels of a crowd stand in its order.
  const others = rows.filter((row) => !front.includes(row)).sort((a, b) => kl(b).mean - kl(a).mean);
  const ordered = [...front, ...others];
  const labels = placeLabels(ordered.map(({ name }) => name), ordered.map(pointOf), {
    width: WIDTH,
    height: HEIGHT,
    fontSize: FONT_SIZE,
    line: front.map(pointOf),
  });
  const points = ordered.map((row) => {
    const { mean, error } = kl(row);
    const low = Math.max(mean - (error ?? 0), y.domain[0]), high = Math.min(mean + (error ?? 0), y.domain[1]);
    return { series: row.series, ...pointOf(row), low: HEIGHT - y.of(low), high: HEIGHT - y.of(high) };
  });
  const texts = labels.flatMap((label, i) =>
    label === undefined ? [] : [{
      text: ordered[i]!.name,
      weight: i < front.length ? "bold" : "normal",
      x: label.x,
      y: label.y,
      fromX: label.anchor.x,
      fromY: label.anchor.y,
      toX: points[i]!.x,
      toY: points[i]!.y,
    }]
  );
  const used = SERIES.filter((series) => rows.some((row) => row.series === series));
  return {
    background: PAPER,
    padding: 12,
    width: WIDTH,
    height: HEIGHT,
    autosize: { type: "pad" },
    title: {
      text: "What reading fewer bytes costs",
      subtitle: `${title}; the line joins what nothing beats in both`,
      anchor: "start",
      color: INK,
      subtitleColor: MUTED,
      offset: 34,
    },
    config: {
      axis: {
        labelColor: MUTED,
        titleColor: INK,
        gridColor: GRID,
        domainColor: MUTED,
        tickColor: MUTED,
        titleFontWeight: "normal",
        titlePadding: 8,
      },
      legend: { labelColor: INK, labelFontSize: 12 },
    },
    data: [
      { name: "points", values: points },
      { name: "front", values: front.map(pointOf) },
      { name: "labels", values: texts },
    ],
    scales: [
      { name: "x", type: "log", domain: [...x.domain], range: [0, WIDTH] },
      { name: "y", type: "log", domain: [...y.domain], range: [HEIGHT, 0] },
      {
        name: "colour",
        type: "ordinal",
        domain: [...used],
        range: used.map((series) => LOOKS[series].colour),
      },
      { name: "shape", type: "ordinal", domain: [...used], range: used.map((series) => LOOKS[series].shape) },
    ],
    axes: [
      {
        scale: "x",
        orient: "bottom",
        values: ticks(x.domain),
        format: "~g",
        grid: true,
        title: "MB of weights and corrections read per token",
      },
      {
        scale: "y",
        orient: "left",
        values: ticks(y.domain),
        format: "~g",
        grid: true,
        title: "KL divergence from bf16, nats per token",
      },
    ],
    legends: [{
      fill: "colour",
      shape: "shape",
      orient: "none",
      direction: "horizontal",
      legendX: 0,
      legendY: -26,
      columns: used.length,
      columnPadding: 26,
    }],
    marks: [
      {
        type: "line",
        from: { data: "front" },
        encode: {
          enter: {
            x: at("x"),
            y: at("y"),
            stroke: { value: MUTED },
            strokeWidth: { value: 1.5 },
            strokeDash: { value: [5, 3] },
          },
        },
      },
      {
        type: "rule",
        from: { data: "labels" },
        encode: {
          enter: {
            x: at("fromX"),
            y: at("fromY"),
            x2: at("toX"),
            y2: at("toY"),
            stroke: { value: MUTED },
            strokeWidth: { value: 0.6 },
          },
        },
      },
      {
        type: "rule",
        from: { data: "points" },
        encode: {
          enter: {
            x: at("x"),
            y: at("low"),
            y2: at("high"),
            stroke: { scale: "colour", field: "series" },
            strokeWidth: { value: 1.5 },
          },
        },
      },
      {
        type: "symbol",
        from: { data: "points" },
        encode: {
          enter: {
            x: at("x"),
            y: at("y"),
            size: { value: 70 },
            fill: { scale: "colour", field: "series" },
            shape: { scale: "shape", field: "series" },
            stroke: { value: PAPER },
            strokeWidth: { value: 1 },
          },
        },
      },
      {
        type: "text",
        from: { data: "labels" },
        encode: {
          enter: {
            x: at("x"),
            y: at("y"),
            text: { field: "text" },
            fontSize: { value: FONT_SIZE },
            fontWeight: { field: "weight" },
            fill: { value: INK },
            align: { value: "center" },
            baseline: { value: "middle" },
          },
        },
      },
    ],
  };
}

function at(field: string) {
  return { field };
}
