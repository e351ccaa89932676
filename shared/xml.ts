// XML as a tree, for what libvirt says and for what a peer says that libvirt said. Never regular expressions to read it.

import { DOMParser, type Document, type Element } from '@xmldom/xmldom'
import { Failure, type FailureCode } from './failures.ts'

/** A document at most 4 MiB. */
export const MAX_XML = 4 * 1024 * 1024

/** What the parser's time and memory grow with, counted before it starts: no domain of libvirt's has a hundredth of it. */
const MOST: readonly (readonly [token: string, count: number, what: string])[] = [
  ['<', 50_000, 'tags'],
  ['=', 200_000, 'attributes'],
  ['xmlns', 256, 'namespaces'],
]

export function children(element: Element, tag: string): Element[] {
  return [...element.childNodes].filter((node): node is Element => node.nodeName === tag)
}

export function child(element: Element | undefined, ...tags: string[]): Element | undefined {
  return tags.reduce<Element | undefined>((at, tag) => at && children(at, tag)[0], element)
}

export function attribute(element: Element | undefined, key: string): string | undefined {
  return element?.getAttribute(key) ?? undefined
}

/** How often `token` is in a text. */
function countOf(text: string, token: string): number {
  let count = 0
  for (let at = text.indexOf(token); at !== -1; at = text.indexOf(token, at + token.length)) count++
  return count
}

/**
 * Parses a document, in a time that its length bounds. There are no entities, because there is no doctype.
 * @param what for messages: `domain XML` @throws Failure `code` for what is not well-formed, too much, or has a doctype
 */
export function parseXml(what: string, xml: string, code: FailureCode): Document {
  const refuse = (reason: string, cause?: unknown): never => {
    throw new Failure(code, `${what} refused: ${reason}`, { cause })
  }
  if (Buffer.byteLength(xml) > MAX_XML) refuse('larger than 4 MiB')
  if (/<!DOCTYPE/i.test(xml)) refuse('it has a doctype')
  for (const [token, most, name] of MOST)
    if (countOf(xml, token) > most) refuse(`it has more than ${most} ${name}`)
  try {
    return new DOMParser({
      onError: (_level, message) => refuse(shown(message)),
    }).parseFromString(xml, 'text/xml')
  } catch (error) {
    if (error instanceof Failure) throw error
    const { cause, message } = error as Error
    throw cause instanceof Failure
      ? cause
      : new Failure(code, `${what} refused: ${shown(message)}`, { cause: error })
  }
}

/** The parser quotes the document; a message needs no more than its beginning. */
const shown = (message: string): string => message.replaceAll(/\p{C}+/gu, ' ').slice(0, 200)
