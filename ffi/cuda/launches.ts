/** How every instruction becomes launches of kernels: the rules that stand beside the kernels, in one table, total by type. */
import type { LaunchRules } from "./launch.ts";
import { rules as attention } from "./kernels/attention.ts";
import { rules as elementwise } from "./kernels/elementwise.ts";
import { rules as embedding } from "./kernels/embedding.ts";
import { rules as heads } from "./kernels/heads.ts";
import { rules as linear } from "./kernels/linear.ts";
import { rules as lowRank } from "./kernels/low_rank.ts";
import { rules as mirror } from "./kernels/mirror.ts";
import { rules as norm } from "./kernels/norm.ts";

export const LAUNCHES: LaunchRules = {
  ...attention,
  ...elementwise,
  ...embedding,
  ...heads,
  ...linear,
  ...lowRank,
  ...mirror,
  ...norm,
};
