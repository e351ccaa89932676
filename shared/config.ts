// Configuration files: YAML with strict keys, errors that name file and line, and layers (defaults < groups < domains <
// disks) where every effective value remembers which layer it came from.

import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { isNode, isScalar, LineCounter, parseDocument, visit, type Document } from 'yaml'
import type { z } from 'zod'
import { Failure } from './failures.ts'

/** Where the package has its commented configurations, built or not. */
const EXAMPLES = fileURLToPath(
  new URL(import.meta.url.endsWith('.ts') ? '../examples/' : '../../examples/', import.meta.url),
)

type Path = readonly (string | number)[]

/** Line of the deepest part of `path` that the document has. */
function lineOf(document: Document, lines: LineCounter, path: Path): number {
  for (let depth = path.length; depth >= 0; depth--) {
    const node = depth === 0 ? document.contents : document.getIn(path.slice(0, depth), true)
    if (isNode(node) && node.range) return lines.linePos(node.range[0]).line
  }
  return 1
}

interface Issue {
  readonly code: string
  readonly path: PropertyKey[]
  readonly message: string
  readonly keys?: string[]
  readonly errors?: Issue[][]
  readonly issues?: Issue[]
}

/** What one zod issue says to a person; of a union, the branch that got furthest speaks. */
function describeIssue(issue: Issue): { path: Path; text: string } {
  const path = issue.path.map(part => (typeof part === 'number' ? part : String(part)))
  if (issue.code === 'unrecognized_keys') {
    const key = issue.keys?.[0] ?? ''
    return { path: [...path, key], text: 'unknown key' }
  }
  if (issue.code === 'invalid_key')
    return { path, text: issue.issues?.[0]?.message ?? issue.message }
  const deepest = issue.errors?.flat().sort((a, b) => b.path.length - a.path.length)[0]
  if (deepest) {
    const inner = describeIssue(deepest)
    return { path: [...path, ...inner.path], text: inner.text }
  }
  return { path, text: issue.message }
}

type Refuse = (why: string, at?: number, cause?: unknown) => never

function readYaml(text: string, lines: LineCounter, refuse: Refuse): Document {
  let document: Document
  try {
    document = parseDocument(text, { lineCounter: lines, logLevel: 'error' })
  } catch (error) {
    // The parser is recursive: what is nested a thousand times ends its stack.
    return refuse((error as Error).message, 0, error)
  }
  const [broken] = document.errors
  if (broken) refuse(broken.message.split('\n')[0] ?? '', broken.pos[0])
  // The schemas pass this one over without a word.
  visit(document, {
    Pair: (_, { key }) => {
      if (isScalar(key) && key.value === '__proto__') refuse('__proto__ is no key', key.range?.[0])
    },
  })
  return document
}

/** @throws what `refuse` makes of aliases that grow, or that lead nowhere */
function valueOf(document: Document, refuse: Refuse): unknown {
  try {
    return document.toJS() as unknown
  } catch (error) {
    return refuse((error as Error).message.split('\n')[0] ?? '', 0, error)
  }
}

/** Checks YAML text against a schema. @param file only for messages. @throws Failure USAGE with file, line, key, reason */
export function parseConfig<S extends z.ZodType>(
  file: string,
  text: string,
  schema: S,
): z.infer<S> {
  const lines = new LineCounter()
  const refuse = (why: string, at = 0, cause?: unknown): never => {
    const { line } = lines.linePos(at)
    throw new Failure('USAGE', `${file}:${line || 1}: not valid YAML: ${why}`, { cause })
  }
  const document = readYaml(text, lines, refuse)
  const result = schema.safeParse(valueOf(document, refuse) ?? {})
  if (result.success) return result.data
  const problems = (result.error.issues as Issue[]).map(issue => {
    const { path, text: reason } = describeIssue(issue)
    return `${file}:${lineOf(document, lines, path)}: ${path.join('.') || 'the file'}: ${reason}`
  })
  throw new Failure('USAGE', problems.join('\n'))
}

/** Reads and checks a config file. @throws Failure USAGE */
export function readConfig<S extends z.ZodType>(file: string, schema: S): z.infer<S> {
  let text: string
  try {
    text = readFileSync(file, 'utf8')
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code
    const reason = code === 'ENOENT' ? 'no such file' : String(code)
    throw new Failure('USAGE', `cannot read the configuration ${file}: ${reason}`, {
      cause: error,
      remedy: `name one with --config FILE, or start from the commented ones in ${EXAMPLES}`,
    })
  }
  return parseConfig(file, text, schema)
}

export interface Layer {
  /** What `config show` prints as origin: `built-in`, `defaults`, `groups.db`, `domains.web1`. */
  readonly origin: string
  readonly values: Readonly<Record<string, unknown>> | undefined
}

export interface Effective {
  readonly values: Record<string, unknown>
  /** Dotted key -> origin of its value. */
  readonly origins: Record<string, string>
}

function isPlainObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

/** Later layers win, key by key, inside nested objects too. */
export function layered(layers: readonly Layer[]): Effective {
  const values: Record<string, unknown> = {}
  const origins: Record<string, string> = {}
  const put = (
    into: Record<string, unknown>,
    from: object,
    prefix: string,
    origin: string,
  ): void => {
    for (const [key, value] of Object.entries(from)) {
      if (value === undefined) continue
      const dotted = prefix + key
      if (isPlainObject(value)) {
        const inner = isPlainObject(into[key]) ? into[key] : {}
        into[key] = inner
        put(inner, value, `${dotted}.`, origin)
      } else {
        into[key] = value
        origins[dotted] = origin
      }
    }
  }
  for (const layer of layers) if (layer.values) put(values, layer.values, '', layer.origin)
  return { values, origins }
}
