import assert from "node:assert/strict";
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { HcinferError } from "../compiler/errors.ts";
import { build, type BuildOptions, libraryPath } from "./build.ts";
import { hasCompiler, installInstructions } from "./build_library.ts";
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

/** Two small sources, and a compiler that writes down what it is called with. */
class Project implements Disposable {
  readonly #tools = mkdtempSync(join(tmpdir(), "hcinfer-build-"));
  readonly #log = join(this.#tools, "log");
  readonly #chosen = process.env["CXX"];
  #root = join(this.#tools, "root");

  get sources() {
    return join(this.#root, "sources");
  }

  get library() {
    return join(this.#root, "built", "libsmall.so");
  }

  constructor() {
    mkdirSync(this.sources, { recursive: true });
    this.write("number.h", "#define NUMBER 1\n");
    this.write("a.cpp", '#include "number.h"\nint a() { return NUMBER; }\n');
    this.write("b.cpp", "int b() { return 2; }\n");
    const compiler = join(this.#tools, "compiler");
    writeFileSync(compiler, `#!/bin/sh\necho "$@" >> ${this.#log}\nexec ${this.#chosen ?? "c++"} "$@"\n`);
    chmodSync(compiler, 0o755);
    process.env["CXX"] = compiler;
  }

  /** A copy with other times of modification takes its place. */
  move(): void {
    const copy = join(this.#tools, "copy");
    cpSync(this.#root, copy, { recursive: true });
    rmSync(this.#root, { recursive: true });
    this.#root = copy;
  }

  write(name: string, text: string): void {
    writeFileSync(join(this.sources, name), text);
  }

  /** Builds, and says what it compiled, `link` for the library. */
  async build(options: BuildOptions = {}): Promise<string[]> {
    writeFileSync(this.#log, "");
    await build({ sources: [this.sources], root: this.#root, library: this.library, ...options });
    const calls = readFileSync(this.#log, "utf8").trim().split("\n").filter((line) =>
      line && line !== "--version"
    );
    return calls.map((line) => /-c \S*?(\w+\.cpp)/.exec(line)?.[1] ?? "link").sort();
  }

  [Symbol.dispose](): void {
    if (this.#chosen === undefined) delete process.env["CXX"];
    else process.env["CXX"] = this.#chosen;
    rmSync(this.#tools, { recursive: true });
  }
}

const ignore = !(await hasCompiler());

Deno.test({
  name: "what is out of date is compiled again, and nothing else",
  ignore,
  fn: async () => {
    using project = new Project();
    assert.deepEqual(await project.build(), ["a.cpp", "b.cpp", "link"]);
    assert.ok(existsSync(project.library));
    assert.deepEqual(await project.build(), []);
    project.write("number.h", "#define NUMBER 3\n");
    assert.deepEqual(await project.build(), ["a.cpp", "link"]);
    project.write("b.cpp", "int b() { return 4; }\n");
    assert.deepEqual(await project.build(), ["b.cpp", "link"]);
    assert.deepEqual(await project.build({ flags: ["-DOTHER"] }), ["a.cpp", "b.cpp", "link"]);
    assert.deepEqual(await project.build({ flags: ["-DOTHER"] }), []);
    rmSync(project.library);
    assert.deepEqual(await project.build({ flags: ["-DOTHER"] }), ["link"]);
  },
});

Deno.test({
  name: "a source that does not compile: its command and the compiler's words, and the old library stays",
  ignore,
  fn: async () => {
    using project = new Project();
    await project.build();
    const before = readFileSync(project.library);
    project.write("b.cpp", "int b() { return nothing; }\n");
    await assert.rejects(project.build(), (error) => {
      assert.ok(error instanceof HcinferError && error.kind === "environment");
      assert.match(
        error.message,
        /^the native library does not compile\n\S*compiler -std=c\+\+20 .* -c \S*b\.cpp/,
      );
      assert.match(error.message, /nothing/);
      return true;
    });
    assert.deepEqual(readFileSync(project.library), before);
    process.env["CXX"] = "/nowhere/c++";
    await assert.rejects(
      project.build(),
      (error) => error instanceof HcinferError && /^CXX=\/nowhere\/c\+\+ does not run\n/.test(error.message),
    );
  },
});

Deno.test({
  name: "a copy of the folder has nothing to compile, and needs no compiler",
  ignore,
  fn: async () => {
    using project = new Project();
    await project.build();
    project.move();
    assert.deepEqual(await project.build(), []);
    process.env["CXX"] = "/nowhere/c++";
    assert.deepEqual(await project.build(), []);
    project.write("b.cpp", "int b() { return 5; }\n");
    await assert.rejects(project.build(), /CXX=\/nowhere\/c\+\+ does not run/);
  },
});
