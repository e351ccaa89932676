// How the parts may depend on each other, and what no file of the product may do; read from the sources themselves.

import t from 'tap'
import { readFileSync } from 'node:fs'
import { readdir } from 'node:fs/promises'
import { builtinModules } from 'node:module'
import path from 'node:path'
import { ROOT } from './lab/names.ts'

const PARTS = ['client', 'server', 'shared'] as const
const MAY_IMPORT: Record<string, readonly string[]> = {
  client: ['client', 'shared'],
  server: ['server', 'shared'],
  shared: ['shared'],
}
/** Files that may be longer, each with its reason. */
const LONGER: Record<string, string> = {}
const MOST_LINES = 300
/** Besides the two cli.ts. What may be touched, and why. */
const TOUCHES_STDIO: Record<string, { what: RegExp; why: string }> = {
  'client/program.ts': { what: /process\.stdout\.columns/g, why: 'the width of the help' },
  'shared/log.ts': { what: /process\.stderr\.isTTY/g, why: 'readable lines or JSON' },
}

interface Source {
  readonly file: string
  readonly text: string
  /** Without comments. */
  readonly code: string
}

async function sources(): Promise<Source[]> {
  const found = await Promise.all(
    PARTS.map(async part => {
      const names = await readdir(path.join(ROOT, part), { recursive: true })
      return names.filter(name => name.endsWith('.ts')).map(name => path.join(part, name))
    }),
  )
  return found.flat().map(file => {
    const text = readFileSync(path.join(ROOT, file), 'utf8')
    const code = text.replaceAll(/\/\*[\s\S]*?\*\/|(^|\s)\/\/.*$/gm, '$1')
    return { file, text, code }
  })
}

/** Static imports and re-exports, side effects, dynamic imports; strings that only look like one do not count. */
function importsOf({ code }: Source): string[] {
  const statement =
    /^(?:import|export)\b[^'"`;=(]*?\bfrom ['"]([^'"]+)|^import ['"]([^'"]+)|\bimport\(['"]([^'"]+)/gm
  return [...code.matchAll(statement)].map(match => match[1] ?? match[2] ?? match[3] ?? '')
}

const all = await sources()
const packageJson = JSON.parse(readFileSync(path.join(ROOT, 'package.json'), 'utf8')) as {
  dependencies: Record<string, string>
}

t.test('client and server never import from each other, shared from neither', t => {
  t.ok(all.length > 50)
  for (const source of all) {
    const [part = ''] = source.file.split('/')
    for (const name of importsOf(source).filter(one => one.startsWith('.'))) {
      const [to = ''] = path.join(path.dirname(source.file), name).split('/')
      t.ok(MAY_IMPORT[part]?.includes(to), `${source.file} imports ${name}`)
    }
  }
  t.end()
})

t.test('every package that is imported is a dependency, and every dependency is imported', t => {
  const packages = new Set<string>()
  for (const source of all)
    for (const name of importsOf(source).filter(one => !one.startsWith('.'))) {
      if (name.startsWith('node:')) continue
      t.notOk(builtinModules.includes(name), `${source.file}: write node:${name}`)
      packages.add(
        name
          .split('/')
          .slice(0, name.startsWith('@') ? 2 : 1)
          .join('/'),
      )
    }
  t.strictSame([...packages].sort(), Object.keys(packageJson.dependencies).sort())
  t.end()
})

t.test('only the two cli.ts print or exit', t => {
  for (const { file, code } of all) {
    if (file === 'client/cli.ts' || file === 'server/cli.ts') continue
    const allowed = TOUCHES_STDIO[file]
    const rest = allowed ? code.replaceAll(allowed.what, '') : code
    const found = /\bconsole\.|\bprocess\.(?:std(?:in|out|err)|exit(?:Code)?)\b/.exec(rest)
    t.notOk(found, `${file}: ${found?.[0] ?? ''}`)
  }
  t.end()
})

t.test('no default exports, no any, no silenced compiler or linter', t => {
  for (const { file, text, code } of all) {
    t.notMatch(code, /^export default\b/m, file)
    t.notMatch(code, /(?:[:<|,&]|=>|\bas)\s*any\b(?!['\w])/, file)
    t.notMatch(text, /@ts-(?:ignore|expect-error|nocheck)|eslint-disable/, file)
  }
  t.end()
})

t.test('every file says first what it knows, and can be read in one go', t => {
  for (const { file, text } of all) {
    t.match(text, /^(?:#!.*\n)?(?:\/\/|\/\*)/, `${file} begins with a comment`)
    const lines = text.split('\n').length - 1
    if (!Object.hasOwn(LONGER, file)) t.ok(lines <= MOST_LINES, `${file} has ${lines} lines`)
  }
  for (const file of Object.keys(LONGER))
    t.ok(
      all.some(one => one.file === file),
      file,
    )
  t.end()
})
