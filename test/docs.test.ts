// The documents, held to the program: what the reference pages list is what yargs, the schemas and the failure table say;
// commands in code blocks can be typed; examples are accepted; links, files and steps that are named exist.

import t from 'tap'
import { existsSync, readFileSync, statSync } from 'node:fs'
import { readdir } from 'node:fs/promises'
import path from 'node:path'
import type { Argv } from 'yargs'
import { configShow } from '../client/commands/config.ts'
import { cloneConfig, loadConfig } from '../client/config/effective.ts'
import { standbyJsonSchema, standbySchema } from '../client/config/schema.ts'
import { program as clone, type Command } from '../client/program.ts'
import { showDomain, sourceJsonSchema } from '../server/commands/config.ts'
import { readSourceConfig, sourceSchema } from '../server/config/schema.ts'
import { program as cloneServer, type Actions } from '../server/program.ts'
import { STEPS } from '../server/session/journal.ts'
import { parseConfig } from '../shared/config.ts'
import { FAILURES } from '../shared/failures.ts'
import { duration, parseSize } from '../shared/quantities.ts'
import { ROOT } from './lab/names.ts'

const read = (file: string): string => readFileSync(path.join(ROOT, file), 'utf8')
const packageJson = JSON.parse(read('package.json')) as {
  version: string
  scripts: Record<string, string>
}

async function markdownFiles(): Promise<string[]> {
  const below = await readdir(path.join(ROOT, 'docs'), { recursive: true })
  const docs = below.filter(name => name.endsWith('.md')).map(name => path.join('docs', name))
  return ['README.md', 'CHANGELOG.md', ...docs]
}

/** The body of `## TITLE`. */
function section(markdown: string, title: string): string {
  const parts = markdown.split(/^## /m)
  return parts.find(part => part.startsWith(`${title}\n`))?.slice(title.length + 1) ?? ''
}

/** Rows of all tables, cells trimmed; heads and rules left out. */
function rows(markdown: string): string[][] {
  const lines = markdown.split('\n').filter(line => line.startsWith('|'))
  const isRule = (line: string | undefined): boolean => /^\|[ :|-]+\|$/.test(line ?? '')
  return lines
    .filter((line, at) => !isRule(line) && !isRule(lines[at + 1]))
    .map(line => line.split('|').slice(1, -1))
    .map(cells => cells.map(cell => cell.trim()))
}

interface Block {
  readonly language: string
  readonly text: string
}

function codeBlocks(markdown: string): Block[] {
  return [...markdown.matchAll(/^( *)```(\w*)\n([\s\S]*?)^\1```$/gm)].map(
    ([, , language = '', text = '']) => ({ language, text }),
  )
}

const nothing = (): Promise<void> => Promise.resolve()
const noActions = new Proxy({}, { get: () => nothing }) as Actions

interface Page {
  readonly name: 'clone' | 'clone-server'
  readonly text: string
  readonly program: (argv: readonly string[]) => Argv
}
const PAGES: readonly Page[] = [
  {
    name: 'clone',
    text: read('docs/reference/clone.md'),
    program: argv => clone(argv, nothing),
  },
  {
    name: 'clone-server',
    text: read('docs/reference/clone-server.md'),
    program: argv => cloneServer(argv, noActions),
  },
]

/** What `--help` lists under `Commands:` or `Options:`, as [first column, rest]. */
function listed(help: string, title: string): [string, string][] {
  const start = help.split(`\n${title}:\n`)[1]?.split('\n\n')[0] ?? ''
  return start
    .split('\n')
    .map(line => /^ +(\S.*?)(?: {2,}(.*))?$/.exec(line))
    .flatMap(match => (match ? [[match[1] ?? '', match[2] ?? ''] as [string, string]] : []))
}

interface Leaf {
  /** As yargs says it: `clone verify <domain> [generation]`. */
  readonly usage: string
  /** `--name` -> description with type and default. */
  readonly options: Map<string, string>
}

function optionsOf(help: string): Map<string, string> {
  return new Map(
    listed(help, 'Options').map(([flags, about]) => {
      const long = flags.split(', ').find(flag => flag.startsWith('--')) ?? flags
      return [long, about]
    }),
  )
}

/** Every command that does something, with its own options. */
async function leaves(page: Page, words: readonly string[] = []): Promise<Leaf[]> {
  const help = await page.program(words).wrap(null).getHelp()
  const commands = listed(help, 'Commands').map(([usage]) => usage)
  const global = optionsOf(await page.program([]).wrap(null).getHelp())
  if (commands.length === 0) {
    const own = [...optionsOf(help)].filter(([option]) => !global.has(option))
    return [{ usage: help.split('\n')[0] ?? '', options: new Map(own) }]
  }
  const found: Leaf[] = []
  for (const usage of commands) {
    const inner = usage.split(' ').slice(1)
    const typed = inner.filter(word => !/^[<[]/.test(word))
    if (typed[0] === 'completion') found.push({ usage, options: new Map() })
    else found.push(...(await leaves(page, typed)))
  }
  return found
}

for (const page of PAGES) {
  t.test(`${page.name}.md is in man-page order`, t => {
    const order = [...page.text.matchAll(/^## (.*)$/gm)].map(match => match[1])
    t.strictSame(order, [
      ...['NAME', 'SYNOPSIS', 'EXAMPLES', 'COMMANDS', 'OPTIONS', 'CONFIGURATION'],
      ...['EXIT STATUS', 'FILES', 'SECURITY', 'SEE ALSO'],
    ])
    t.end()
  })

  t.test(`${page.name}.md: SYNOPSIS and COMMANDS are what yargs knows`, async t => {
    const known = await leaves(page)
    const synopsis = (codeBlocks(section(page.text, 'SYNOPSIS'))[0]?.text ?? '').trim().split('\n')
    const usageOf = (line: string): string => line.replace(/ \[--.*/, '').replace(/ --.*/, '')
    t.strictSame(synopsis.map(usageOf).sort(), known.map(({ usage }) => usage).sort())
    for (const line of synopsis) {
      const typed = line.match(/--[a-z-]+/g) ?? []
      const own = known.find(({ usage }) => usage === usageOf(line))?.options.keys() ?? []
      t.strictSame(typed.sort(), [...own].sort(), line)
    }
    const headings = [...section(page.text, 'COMMANDS').matchAll(/^### (.*)$/gm)]
    t.strictSame(
      headings.map(match => (match[1] ?? '').replaceAll('\\', '')).sort(),
      known.map(({ usage }) => usage).sort(),
    )
  })

  t.test(`${page.name}.md: OPTIONS are those of yargs, with their defaults`, async t => {
    const known = optionsOf(await page.program([]).wrap(null).getHelp())
    for (const { options } of await leaves(page))
      for (const [option, about] of options) known.set(option, about)
    const documented = new Map(
      rows(section(page.text, 'OPTIONS')).map(([option = '', meaning = '']) => [
        /--[a-z-]+/.exec(option)?.[0] ?? '',
        meaning,
      ]),
    )
    t.strictSame([...documented.keys()].sort(), [...known.keys()].sort())
    for (const [option, about] of known) {
      const meaning = documented.get(option) ?? ''
      const [, value] = /\[default: "([^"]*)"\]/.exec(about) ?? []
      // The default of --client is this machine's name.
      if (value !== undefined && option !== '--client') t.match(meaning, value, option)
      for (const [, choice = ''] of (/choices: (.*?)\]/.exec(about)?.[1] ?? '').matchAll(
        /"(.*?)"/g,
      ))
        t.match(meaning, choice, option)
    }
  })

  t.test(`${page.name}.md and --help: EXIT STATUS is the failure table`, async t => {
    const table = rows(section(page.text, 'EXIT STATUS'))
    const help = await page.program([]).wrap(null).getHelp()
    const inHelp = [...help.matchAll(/^ +(\d+) {2}(.*)$/gm)].map(([, exit, meaning]) => [
      exit,
      meaning,
    ])
    t.strictSame(
      table.map(([exit, , meaning]) => [exit, meaning]),
      inHelp,
    )
    t.strictSame(
      table.slice(1),
      Object.entries(FAILURES).map(([code, { exit, meaning, retry, hint }]) => [
        String(exit),
        `\`${code}\``,
        meaning,
        retry ? 'yes' : 'no',
        hint,
      ]),
    )
  })
}

t.test('every failure has an exit status of its own, a meaning and a next command', t => {
  const all = Object.entries(FAILURES)
  t.equal(new Set(all.map(([, { exit }]) => exit)).size, all.length)
  for (const [code, { exit, meaning, hint }] of all) {
    t.ok(exit > 0 && exit < 256, code)
    t.not(meaning.trim(), '', code)
    t.not(hint.trim(), '', code)
  }
  t.end()
})

interface JsonSchema {
  readonly properties?: Record<string, JsonSchema>
  readonly additionalProperties?: JsonSchema | boolean
  readonly default?: unknown
}

/** Dotted keys that hold a value; `NAME` stands for a key that the user chooses. */
function keysOf(schema: JsonSchema, prefix = ''): Map<string, unknown> {
  const inner = new Map<string, JsonSchema>(Object.entries(schema.properties ?? {}))
  if (typeof schema.additionalProperties === 'object' && !schema.properties)
    inner.set('NAME', schema.additionalProperties)
  if (inner.size === 0) return new Map([[prefix, schema.default]])
  return new Map(
    [...inner].flatMap(([key, value]) => [
      ...keysOf(value, prefix === '' ? key : `${prefix}.${key}`),
    ]),
  )
}

/** As the reference writes them: a setting that all layers may have stands without a prefix. */
function documentedKeys(schema: JsonSchema): Map<string, unknown> {
  const keys = keysOf(schema)
  const folded = [...keys].map(([key, value]): [string, unknown] => {
    const bare = key.replace(/^(defaults|groups\.NAME|domains\.NAME)\./, '')
    const everywhere = ['defaults', 'groups.NAME', 'domains.NAME'].every(layer =>
      keys.has(`${layer}.${bare}`),
    )
    return [everywhere ? bare : key, value]
  })
  return new Map(folded)
}

/** A default as it is written in the table, as the program holds it. */
function valueOf(cell: string): unknown {
  const text = /^`(.*)`$/.exec(cell)?.[1] ?? cell
  const time = duration.safeParse(text)
  if (time.success) return time.data
  if (text === 'true' || text === 'false') return text === 'true'
  return parseSize(text) ?? text
}

const standbyOf = (text: string) => parseConfig('standby.yaml', text, standbySchema)
const sourceOf = (text: string) => parseConfig('source.yaml', text, sourceSchema)
const MINIMAL = 'sources: { a: { transport: unix } }\ndomains: { d: { source: a } }\n'

const CONFIGS = [
  {
    page: PAGES[0],
    schema: standbyJsonSchema() as JsonSchema,
    /** Effective value -> what the table must say; durations as milliseconds. */
    builtIn: new Map<string, unknown>(
      configShow(standbyOf(MINIMAL), 'd')[0]
        ?.values.filter(({ origin, key }) => origin === 'built-in' && key !== 'domain')
        .map(({ key }) => [key, clonedDefault(key)]),
    ),
  },
  {
    page: PAGES[1],
    schema: sourceJsonSchema() as JsonSchema,
    builtIn: new Map(
      showDomain(sourceOf('domains: { d: {} }\n'), 'd').map(({ key, value }) => [key, value]),
    ),
  },
] as const

function clonedDefault(key: string): unknown {
  const { rpoMs, keep, stallMs, reverifyMs, ownership } = cloneConfig(standbyOf(MINIMAL), 'd')
  const kept = Object.entries(keep).map(([rule, count]) => [`keep.${rule}`, count] as const)
  const modes = {
    'ownership.mode': `'${ownership.mode}'`,
    'ownership.dirMode': `'${ownership.dirMode}'`,
  }
  const times = { rpo: rpoMs, stall: stallMs, reverify: reverifyMs }
  const words = { verify: 'readback', generations: 'auto', limitRate: 'off' }
  return { ...Object.fromEntries(kept), ...times, ...words, ...modes }[key]
}

for (const { page, schema, builtIn } of CONFIGS)
  t.test(`${page?.name ?? ''}.md: CONFIGURATION has every key, with its default`, t => {
    const table = rows(section(page?.text ?? '', 'CONFIGURATION').split('\n### ')[0] ?? '')
    const documented = new Map(
      table.map(([key = '', value = '']) => [key.replaceAll('`', ''), value]),
    )
    const known = documentedKeys(schema)
    t.strictSame([...documented.keys()].sort(), [...known.keys()].sort())
    for (const [key, value] of [...known, ...builtIn]) {
      if (value === undefined) continue
      const wanted = Array.isArray(value) ? value.join(' ') : value
      t.strictSame(valueOf(documented.get(key) ?? ''), wanted, key)
    }
    t.end()
  })

t.test('the examples are accepted by the programs', t => {
  const standby = loadConfig(path.join(ROOT, 'examples/standby.yaml'))
  for (const name of Object.keys(standby.domains)) t.ok(cloneConfig(standby, name).source)
  const source = readSourceConfig(path.join(ROOT, 'examples/source.yaml'))
  for (const name of Object.keys(source.domains)) t.ok(showDomain(source, name).length > 0)
  t.end()
})

t.test('every YAML block in the documents is accepted', async t => {
  let checked = 0
  for (const file of await markdownFiles())
    for (const { language, text } of codeBlocks(read(file))) {
      if (language !== 'yaml') continue
      checked++
      if (text.startsWith('# /etc/nbd-clone/source.yaml\n')) t.ok(sourceOf(text), file)
      else if (text.startsWith('# /etc/nbd-clone/standby.yaml\n')) t.ok(standbyOf(text), file)
      else t.fail(`${file}: a YAML block must name its file in its first line`)
    }
  t.ok(checked >= 5)
})

t.test('the cron line is one, pulls what is due, and is the one in the README', async t => {
  const lines = read('examples/cron')
    .split('\n')
    .filter(line => line !== '' && !/^(#|[A-Z]+=)/.test(line))
  t.equal(lines.length, 1)
  const [line = ''] = lines
  const fields = line.split(' ')
  t.match(fields.slice(0, 6).join(' '), /^([\d*/,-]+ ){5}root$/)
  const commands: Command[] = []
  t.equal(fields[6], 'clone')
  await clone(fields.slice(7), command => {
    commands.push(command)
    return Promise.resolve()
  }).parseAsync()
  t.match(commands, [{ name: 'pull', all: true, ifDue: true, dryRun: false }])
  t.match(read('README.md'), `\n${line}\n`)
})

/** The commands of ours in a code block, without prompt, redirection and comment. */
function typedCommands({ language, text }: Block): string[] {
  if (!['', 'sh', 'console'].includes(language)) return []
  return text
    .split('\n')
    .map(line => line.replace(/^(source|standby)# /, ''))
    .filter(line => /^clone(-server)? [a-z]/.test(line))
    .map(line => line.split(/ +(?:>|\||#|&&)/)[0] ?? '')
}

t.test('every command in a code block can be typed', async t => {
  let checked = 0
  for (const file of await markdownFiles()) {
    const blocks = codeBlocks(read(file).replace(/## SYNOPSIS[\s\S]*?\n## /, '## '))
    for (const command of blocks.flatMap(typedCommands)) {
      checked++
      const [name, ...argv] = command.split(' ')
      const page = PAGES.find(one => one.name === name)
      await t.resolves(page?.program(argv).parseAsync() ?? Promise.reject(new Error(name)), command)
    }
  }
  t.ok(checked > 20, `${checked} commands`)
})

t.test('every npm script that the documents name is there', async t => {
  for (const file of await markdownFiles())
    for (const [, run, name = ''] of read(file).matchAll(
      /\bnpm (run (?:-s )?)?(demo|test(?::\w+)?|check|lab|bench|build|format)\b/g,
    )) {
      t.ok(Object.hasOwn(packageJson.scripts, name), `${file}: ${name}`)
      if (run === undefined) t.match(name, /^test$/, `${file}: npm ${name} needs run`)
    }
})

/** As GitHub makes fragments of headings. */
function slug(heading: string): string {
  return heading
    .replaceAll(/[`\\]/g, '')
    .replaceAll(/\[(.*?)\]\(.*?\)/g, '$1')
    .toLowerCase()
    .replaceAll(/[^\p{L}\p{N} _-]/gu, '')
    .trim()
    .replaceAll(' ', '-')
}

t.test('every link leads somewhere, with its fragment', async t => {
  for (const file of await markdownFiles()) {
    const prose = read(file).replaceAll(/^( *)```[\s\S]*?^\1```$/gm, '')
    for (const [, target = ''] of prose.matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^https?:/.test(target)) continue
      const [to = '', fragment] = target.split('#')
      const found = to === '' ? file : path.join(path.dirname(file), to)
      const isFile = existsSync(path.join(ROOT, found)) && statSync(path.join(ROOT, found)).isFile()
      t.ok(isFile, `${file}: ${target}`)
      if (!isFile || fragment === undefined) continue
      const headings = [...read(found).matchAll(/^#+ (.*)$/gm)].map(match => slug(match[1] ?? ''))
      t.ok(headings.includes(fragment), `${file}: ${target}`)
    }
  }
})

t.test('every file of the repository that a document names is there', async t => {
  for (const file of await markdownFiles())
    for (const [, name = ''] of read(file).matchAll(
      /`((?:server|client|shared|test|examples|docs)\/[\w./-]+\.\w+)`/g,
    ))
      t.ok(existsSync(path.join(ROOT, name)), `${file}: ${name}`)
})

/** Numbers of a list's items, or of the comments in the code. */
const numbered = (text: string, pattern: RegExp): string[] =>
  [...text.matchAll(pattern)].map(match => match[1] ?? '')

t.test('the steps in architecture.md have the numbers of the comments in the code', t => {
  const page = read('docs/architecture.md')
  const freeze = page.split('### The freeze\n')[1]?.split('\n### ')[0] ?? ''
  const pull = section(page, 'A pull on the standby')
  const inCode = (file: string): string[] =>
    [...new Set(numbered(read(file), /^ *\/\/ (\d)\. /gm))].sort()
  t.strictSame(numbered(freeze, /^(\d)\. /gm), inCode('server/session/begin.ts'))
  t.strictSame(numbered(pull, /^(\d)\. /gm), inCode('client/pull.ts'))
  const journal = rows(page.split('### The journal\n')[1]?.split('\n## ')[0] ?? '')
  t.strictSame(
    journal.map(([step]) => step),
    STEPS.map(step => `\`${step}\``),
  )
  t.end()
})

t.test('every decision is in the index, and nothing else', async t => {
  const pages = (await readdir(path.join(ROOT, 'docs/decisions'))).filter(name =>
    /^\d{4}-/.test(name),
  )
  const indexed = [
    ...read('docs/decisions/README.md').matchAll(/\((\d{4}-[\w-]+\.md)\) \| (.*) \|/g),
  ]
  t.strictSame(indexed.map(match => match[1]).sort(), pages.sort())
  for (const [, page = '', title = ''] of indexed)
    t.match(read(`docs/decisions/${page}`), `# ${page.slice(0, 4)} ${title}\n`)
})

t.test('the changelog has this version, in sentences about the programs', t => {
  const changelog = read('CHANGELOG.md')
  t.match(changelog, `\n## ${packageJson.version} `)
  for (const [line] of changelog.matchAll(/^- .*(?:\n {2}.*)*/gm))
    t.match(line, /^- `clone(-server)?[^`]*`(.|\n)* now /)
  t.end()
})

t.test("the documents use the project's words", async t => {
  const wrong = /\b(replicas?|primary|secondary|slave|simply|seamless\w*|blazing\w*|robust)\b/i
  for (const file of await markdownFiles()) {
    const found = wrong.exec(read(file))
    t.notOk(found, `${file}: ${found?.[0] ?? ''}`)
  }
})
