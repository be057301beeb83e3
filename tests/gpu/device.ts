/** (a) Which device, and how fast a copy in its memory is: what every share in the table is of. */
import { cpus } from "node:os";
import { copyBandwidth, linkBandwidth } from "../../runtime/gpu_machine.ts";
import { openContext, type Part } from "./setting.ts";

export const device: Part = {
  title: "Device",
  measure({ known, threads }) {
    using context = openContext();
    const { name, capability, multiprocessors, totalMemory, driverVersion } = context.device;
    known.copyBandwidth = copyBandwidth(context);
    const gib = (totalMemory / 2 ** 30).toFixed(1);
    return [
      {
        what: "device",
        found: `${name}, compute capability ${capability / 10}, ${multiprocessors} SMs, ${gib} GiB`,
      },
      {
        what: "driver",
        found: `CUDA ${driverVersion}${context.driver.kind === "sim" ? " (simulator)" : ""}`,
      },
      { what: "date", found: new Date().toISOString().slice(0, 10) },
      { what: "CPU", found: `${cpus()[0]?.model.trim() ?? "unknown"}, ${threads} threads` },
      { what: "copy within the device, read and written", found: gigabytes(known.copyBandwidth) },
      { what: "copy from pinned memory to the device", found: gigabytes(linkBandwidth(context)) },
    ];
  },
};

const gigabytes = (bytesPerSecond: number) => `${(bytesPerSecond / 1e9).toPrecision(4)} GB/s`;
