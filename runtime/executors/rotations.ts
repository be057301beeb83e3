/** The tables that `rope` and `append` rotate by (segment `tables`), from the plan's frequencies. */
import type { Memory } from "../../compiler/memory.ts";
import type { Plan } from "../../compiler/plan.ts";
import type { NativeMemory } from "../../ffi/mapping.ts";

/** Writes cos and sin of position * frequency, times the table's scale: f32 [context, headDim / 2] each. */
export function fillRotations(tables: NativeMemory, { graph }: Plan, memory: Memory): void {
  const { contextLength } = memory.limits;
  for (const { name, frequencies, scale } of graph.ropes) {
    const { cosines, sines } = memory.rotations.get(name)!;
    const half = frequencies.length;
    const array = (offset: number) => {
      const { buffer, byteOffset } = tables.view(offset, 4 * contextLength * half);
      return new Float32Array(buffer, byteOffset, contextLength * half);
    };
    const [cosine, sine] = [array(cosines), array(sines)];
    frequencies.forEach((frequency, i) => {
      for (let position = 0; position < contextLength; position++) {
        cosine[position * half + i] = Math.cos(position * frequency) * scale;
        sine[position * half + i] = Math.sin(position * frequency) * scale;
      }
    });
  }
}
