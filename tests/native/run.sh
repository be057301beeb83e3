#!/bin/sh
# Builds and runs the native tests for every instruction set of this machine, and for 64-bit ARM where
# aarch64-linux-gnu-g++ and qemu-aarch64-static are installed; all must print the same digest.
#   tests/native/run.sh [test...]      e.g. tests/native/run.sh simd_test
# With OBJECTS=<folder> kernels are taken from there (<source>.<variant>.o, as `deno task build` leaves them in
# ffi/build) instead of being compiled again, and only this machine's variants run. SANITIZE=address,undefined builds the
# tests with that sanitizer, and runs the best variant and scalar, whose operations it sees as such.
set -eu
cd "$(dirname "$0")"
build=../../ffi/build/native
mkdir -p "$build"
flags="-std=c++20 -O1 -Wall -Wextra -Werror -ffp-contract=off -fno-math-errno ${SANITIZE:+-fsanitize=$SANITIZE -g1}"
avx512="-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c"
simd=../../ffi/simd

sources() { # test, variant
  echo "$1.cpp"
  case $1 in
    kernels_test) kernels="elementwise observe sampling" ;;
    attention_test) kernels="attention" ;;
    linear_test) kernels="linear linear_blocks" ;;
    correction_test) kernels="correction" ;;
    extents_test) kernels="elementwise attention linear linear_blocks correction observe" ;;
    engine_test) kernels="variant elementwise attention linear linear_blocks correction observe sampling" ;;
    *) kernels= ;;
  esac
  for kernel in $kernels; do
    if [ -n "${OBJECTS:-}" ]; then echo "$OBJECTS/$kernel.$2.o"; else echo "$simd/$kernel.cpp"; fi
  done
  # What is not of one instruction set. It needs instructions.h, which `deno task build` writes.
  case $1 in
    extents_test) others="program" ;;
    engine_test) others="engine lanes program" ;;
    *) others= ;;
  esac
  for other in $others; do
    if [ -n "${OBJECTS:-}" ]; then echo "$OBJECTS/$other.o"; else echo "$simd/$other.cpp"; fi
  done
  [ -z "$others" ] || echo "-I../../ffi/build -pthread"
}

variants() {
  if [ -n "${SANITIZE:-}" ]; then all_variants | sed -n '1p;$p'; else all_variants; fi
}

all_variants() {
  case $(uname -m) in
    x86_64)
      for variant in avx512vnni avx512 avx2; do
        case $variant in avx512vnni) flag=avx512_vnni ;; avx512) flag=avx512bw ;; *) flag=avx2 ;; esac
        grep -qw "$flag" /proc/cpuinfo && echo "$variant"
      done
      echo scalar
      if [ -z "${OBJECTS:-}" ] && command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64-static >/dev/null; then
        echo neon; echo neon-dotprod
      fi ;;
    *)
      echo neon; echo scalar ;;
  esac
}

run() { # test, variant: prints its digest
  compiler=${CXX:-g++}; machine=; runner=
  case $2 in
    avx512vnni) machine="$avx512 -mavx512vnni" ;;
    avx512) machine=$avx512 ;;
    avx2) machine="-mavx2 -mfma -mf16c" ;;
    neon*) if [ "$(uname -m)" = x86_64 ]; then
        compiler=aarch64-linux-gnu-g++; machine=-static; runner=qemu-aarch64-static
      fi
      [ "$2" = neon-dotprod ] && machine="$machine -march=armv8.2-a+dotprod" ;;
  esac
  $compiler $flags $machine -DHC_ISA="${2%-*}" $(sources "$1" "$2") -o "$build/$1.$2" && $runner "$build/$1.$2"
}

status=0
for test in ${@:-simd_test kernels_test attention_test linear_test correction_test extents_test shedding_test engine_test}; do
  running=
  for variant in $(variants); do
    run "$test" "$variant" >"$build/$test.$variant.digest" &
    running="$running $variant:$!"
  done
  first=
  for variant in $running; do
    if wait "${variant#*:}"; then result=ok; else result=FAILED; status=1; fi
    variant=${variant%:*}
    digest=$(cat "$build/$test.$variant.digest")
    [ -n "$first" ] || first=$digest
    if [ "$digest" != "$first" ]; then result="$result, DIFFERS"; status=1; fi
    echo "$test $variant $digest $result"
  done
done
exit $status
