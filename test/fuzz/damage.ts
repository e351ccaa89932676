// Valid input, damaged: bytes flipped, cut, doubled; JSON with values that nobody expects in any place.

import fc from 'fast-check'

/** One to four small wounds of a byte string. */
export function damaged(input: Buffer): fc.Arbitrary<Buffer> {
  const wound = fc.record({
    kind: fc.constantFrom('flip', 'cut', 'drop', 'double', 'insert'),
    at: fc.nat(Math.max(0, input.length - 1)),
    length: fc.nat(64),
    bytes: fc.uint8Array({ minLength: 1, maxLength: 16 }),
  })
  return fc.array(wound, { minLength: 1, maxLength: 4 }).map(wounds => {
    let bytes = input
    for (const { kind, at, length, bytes: more } of wounds) {
      const [before, after] = [bytes.subarray(0, at), bytes.subarray(at)]
      if (kind === 'flip')
        bytes = Buffer.concat([before, more.subarray(0, after.length), after.subarray(more.length)])
      else if (kind === 'cut') bytes = before
      else if (kind === 'drop') bytes = Buffer.concat([before, after.subarray(length)])
      else if (kind === 'double')
        bytes = Buffer.concat([before, after.subarray(0, length), after.subarray(0, length), after])
      else bytes = Buffer.concat([before, more, after])
    }
    return bytes
  })
}

const STRANGE: readonly unknown[] = [
  ...[null, true, false, 0, -1, 1.5, 2 ** 53, -(2 ** 53), 1e308, '', ' ', '..', '../../etc/passwd'],
  ...['/', '\0', '\u001b[2J', '__proto__', 'constructor', '-oProxyCommand=x', '\ud800', 'a/b@c'],
  ...['x'.repeat(5000), [], {}, [[[[]]]], { toString: 1 }, ['a', 'b'], { a: { b: {} } }],
]
const KEYS = ['__proto__', 'constructor', 'toString', 'length', '', 'schema', 'xyzzy']

/** The same value with a few of its places, at any depth, replaced, removed or added to. */
export function distorted(value: unknown): fc.Arbitrary<unknown> {
  const change = fc.record({
    way: fc.array(fc.nat(9), { minLength: 1, maxLength: 5 }),
    kind: fc.constantFrom('replace', 'remove', 'add'),
    strange: fc.oneof(fc.constantFrom(...STRANGE), fc.jsonValue({ maxDepth: 3 })),
    key: fc.constantFrom(...KEYS),
  })
  return fc.array(change, { minLength: 1, maxLength: 3 }).map(changes => {
    let text = JSON.stringify(value)
    for (const one of changes) text = applied(text, one)
    return JSON.parse(text) as unknown
  })
}

interface Change {
  readonly way: readonly number[]
  readonly kind: string
  readonly strange: unknown
  readonly key: string
}

function applied(text: string, { way, kind, strange, key }: Change): string {
  const root = { root: JSON.parse(text) as unknown }
  let parent: object = root
  let last = 'root'
  for (const step of way) {
    const inner = (parent as Record<string, unknown>)[last]
    if (typeof inner !== 'object' || inner === null) break
    const keys = Object.keys(inner)
    const next = keys[step % Math.max(1, keys.length)]
    if (next === undefined) break
    parent = inner
    last = next
  }
  const put = (name: string): unknown =>
    // An own property, also for __proto__, as JSON.parse makes it.
    Object.defineProperty(parent, name, { value: strange, ...FREE })
  if (kind === 'replace') put(last)
  else if (kind === 'add' && !Array.isArray(parent) && parent !== root) put(key)
  else if (parent !== root) Reflect.deleteProperty(parent, last)
  return JSON.stringify(root.root)
}
const FREE = { enumerable: true, configurable: true, writable: true }
