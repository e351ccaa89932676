// What a peer says, before anybody else sees it.

/** The longest text of a peer that is passed on. */
const MAX_TEXT = 4000

/** A peer's words, at any depth, made safe for a terminal and a history line: no control characters, no end of them. */
export function harmless<T>(value: T): T {
  const clean = (one: unknown): unknown =>
    typeof one === 'string'
      ? one.replace(/[^\P{Cc}\n\t]|\p{Cf}/gu, ' ').slice(0, MAX_TEXT)
      : Array.isArray(one)
        ? one.map(clean)
        : one !== null && typeof one === 'object'
          ? Object.fromEntries(Object.entries(one).map(([key, inner]) => [key, clean(inner)]))
          : one
  return clean(value) as T
}
