// Choice of the instruction-set variant at run time. Kernel sources are compiled once per variant with
// -DHC_ISA=<name>; each lives in namespace hc::<name> and fills one Kernels table.
#pragma once
#include "kernels.h"

namespace hc {

namespace avx512vnni { const Kernels& kernels(); }
namespace avx512 { const Kernels& kernels(); }
namespace avx2 { const Kernels& kernels(); }
namespace neon { const Kernels& kernels(); }
namespace scalar { const Kernels& kernels(); }

// The best variant this machine runs, or the one named in HCINFER_ISA. Null when HCINFER_ISA names a variant that is
// unknown or that this machine cannot run; `isa_error` then says which exist.
const Kernels* active_kernels();
const char* isa_error();

}  // namespace hc
