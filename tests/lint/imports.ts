/**
 * House rules as lint rules; `deno lint` loads this file (deno.json, "plugins").
 *
 * layers      Who may import whom, after the way of the data: compiler -> bundle -> runtime -> ffi. The compiler imports
 *             nothing from runtime/ or ffi/, except that compiler/weights/, compiler/calibration/ and compiler/bundle*.ts may use
 *             ffi/.
 *             ffi/ imports nothing from runtime/. None of the three imports the programs on top of them. Only tests
 *             import from tests/.
 * pointers    Deno.dlopen and Deno.Unsafe* only in ffi/: pointers never leave it.
 * node        No other use of Deno.* outside ffi/ and tests, so that the code also runs on Node.
 * registries  npm packages by their names in deno.json's import map and node: built-ins; no jsr:, https:, or npm: inline.
 */
import { fileURLToPath } from "node:url";

interface Layer {
  /** Files the row is about: the first row that matches decides. */
  readonly importer: RegExp;
  readonly forbidden: RegExp;
  readonly hint: string;
}

const COMMANDS = String.raw`main\.ts|mod\.ts|cli/|examples/`;
const PROGRAMS = String.raw`${COMMANDS}|server/`;

const LAYERS: readonly Layer[] = [
  {
    importer: /^compiler\/(weights\/|calibration\/|bundle\w*\.ts$)/,
    forbidden: new RegExp(`^(runtime/|${PROGRAMS})`),
    hint: "compiler/weights/, compiler/calibration/ and compiler/bundle*.ts may use ffi/ but not runtime/.",
  },
  {
    importer: /^compiler\//,
    forbidden: new RegExp(`^(runtime/|ffi/|${PROGRAMS})`),
    hint:
      "Only compiler/weights/, compiler/calibration/ and compiler/bundle*.ts may use ffi/; what a run needs reaches it through the bundle.",
  },
  {
    importer: /^runtime\//,
    forbidden: new RegExp(`^(${PROGRAMS})`),
    hint: "The command line and the examples are built on runtime/, not the other way round.",
  },
  {
    importer: /^server\//,
    forbidden: new RegExp(`^(ffi/|${COMMANDS})`),
    hint: "The server is built on runtime/; the command line starts it.",
  },
  {
    importer: /^ffi\//,
    forbidden: new RegExp(`^(runtime/|${PROGRAMS})`),
    hint: "ffi/ is the lowest layer.",
  },
];

const ROOT = fileURLToPath(new URL("../../", import.meta.url));

/** Path in the repository of an absolute or relative file name. */
function inRepository(filename: string): string {
  const path = filename.replace(/^file:\/\//, "");
  return path.startsWith(ROOT) ? path.slice(ROOT.length) : path;
}

/** Path in the repository of what `importer` imports as `specifier`; undefined for packages and built-ins. */
function target(importer: string, specifier: string): string | undefined {
  if (!/^\.{1,2}\//.test(specifier)) return undefined;
  return new URL(specifier, `file:///${importer}`).pathname.slice(1);
}

function isTest(path: string): boolean {
  return path.startsWith("tests/") || path.endsWith("_test.ts");
}

/** Calls `check` with the specifier of every import, re-export, dynamic import and type import of a file. */
function importVisitor(
  check: (specifier: string, node: Deno.lint.Node) => void,
): Deno.lint.LintVisitor {
  const checkSource = (source: Deno.lint.Node | null | undefined) => {
    if (source?.type === "Literal" && typeof source.value === "string") check(source.value, source);
  };
  return {
    ImportDeclaration: (node) => checkSource(node.source),
    ExportNamedDeclaration: (node) => checkSource(node.source),
    ExportAllDeclaration: (node) => checkSource(node.source),
    ImportExpression: (node) => checkSource(node.source),
    TSImportType: (node) =>
      checkSource(node.argument.type === "TSLiteralType" ? node.argument.literal : undefined),
  };
}

const plugin: Deno.lint.Plugin = {
  name: "hcinfer",
  rules: {
    layers: {
      create(context) {
        const importer = inRepository(context.filename);
        const layer = LAYERS.find((l) => l.importer.test(importer));
        return importVisitor((specifier, node) => {
          const path = target(importer, specifier);
          if (path === undefined) return;
          const message = `${importer} must not import ${path}`;
          if (layer?.forbidden.test(path)) context.report({ node, message, hint: layer.hint });
          if (path.startsWith("tests/") && !isTest(importer)) {
            context.report({
              node,
              message,
              hint: "What tests share is in tests/fixtures/, for tests alone.",
            });
          }
        });
      },
    },
    registries: {
      create(context) {
        return importVisitor((specifier, node) => {
          if (!/^(jsr|npm|https?):/.test(specifier)) return;
          const message = `"${specifier}" names a registry`;
          context.report({
            node,
            message,
            hint: "Add the npm package to deno.json's imports and use its bare name.",
          });
        });
      },
    },
    pointers: {
      create(context) {
        if (inRepository(context.filename).startsWith("ffi/")) return {};
        return {
          MemberExpression(node) {
            const name = denoMember(node);
            if (name === undefined || !/^(dlopen|Unsafe\w+)$/.test(name)) return;
            context.report({
              node,
              message: `Deno.${name} outside ffi/`,
              hint: "Pointers never leave ffi/.",
            });
          },
        };
      },
    },
    node: {
      create(context) {
        const path = inRepository(context.filename);
        if (path.startsWith("ffi/") || isTest(path)) return {};
        return {
          MemberExpression(node) {
            const name = denoMember(node);
            if (name === undefined || /^(dlopen|Unsafe\w+)$/.test(name)) return;
            context.report({
              node,
              message: `Deno.${name} does not exist on Node`,
              hint: "Use a node: built-in.",
            });
          },
        };
      },
    },
  },
};

/** `name` of the expression `Deno.name`. */
function denoMember(node: Deno.lint.MemberExpression): string | undefined {
  if (node.object.type !== "Identifier" || node.object.name !== "Deno") return undefined;
  return node.property.type === "Identifier" ? node.property.name : undefined;
}

export default plugin;
