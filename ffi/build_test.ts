import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { HcinferError } from "../compiler/errors.ts";
import { installInstructions, libraryPath } from "./build.ts";
import { open, openOwn } from "./open.ts";
import { abi, ABI_VERSION } from "./symbols.ts";

Deno.test("how to install a compiler, by system", () => {
  const command = (release: string) => installInstructions("linux", release);
  assert.match(command('ID=debian\nVERSION_ID="12"\n'), /apt-get install -y g\+\+/);
  assert.match(command('ID=linuxmint\nID_LIKE="ubuntu debian"\n'), /apt-get/);
  assert.match(command("ID=fedora\n"), /dnf/);
  assert.match(command('ID="rocky"\nID_LIKE="rhel centos fedora"\n'), /dnf/);
  assert.match(command("ID=arch\n"), /pacman/);
  assert.match(command("ID=alpine\n"), /apk/);
  assert.match(command("ID=unknown\n"), /set CXX/);
  assert.match(installInstructions("darwin", ""), /xcode-select --install/);
});

Deno.test("each sanitizer has a library of its own", () => {
  assert.ok(existsSync(libraryPath()), "deno task build comes before the tests");
  assert.notEqual(libraryPath("address"), libraryPath("thread"));
});

Deno.test("a library that is not there, and one that is no library", () => {
  for (const path of ["/nowhere/libhcinfer.so", new URL(import.meta.url).pathname]) {
    assert.throws(() => openOwn(path), (error) => {
      assert.ok(error instanceof HcinferError && error.kind === "environment");
      assert.match(error.message, /run: deno task build/);
      return true;
    });
  }
});

Deno.test("any library opens with a table of its functions", () => {
  const own = open(libraryPath(), abi);
  assert.equal(own.symbols.hc_abi_version(), ABI_VERSION);
  own.close();
  for (
    const [path, table] of [["/nowhere/libother.so", {}], [libraryPath(), {
      hc_nothing: { parameters: [], result: "void" },
    }]] as const
  ) {
    assert.throws(() => open(path, table, "\ninstall it"), (error) => {
      assert.ok(error instanceof HcinferError && error.kind === "environment");
      assert.ok(error.message.startsWith(`${path} does not load: `) && error.message.endsWith("install it"));
      return true;
    });
  }
});
