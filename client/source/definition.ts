// The XML that a clone gets from its source, or from a folder, is anybody's text. It is believed to be the definition of
// the domain that was asked for, or refused; what it says inside is for whoever starts the domain one day to judge.

import type { Element, Node } from '@xmldom/xmldom'
import { Failure, type FailureCode } from '../../shared/failures.ts'
import type { SessionInfo } from '../../shared/gate.ts'
import { child, children, parseXml } from '../../shared/xml.ts'

/** libvirt's own are about ten deep. */
const DEEPEST = 64

export interface Definitions extends Pick<SessionInfo, 'inactiveXml' | 'networks' | 'pools'> {
  /** Empty when the domain was off. */
  readonly liveXml: string
}
/** Which domain it must be the definition of. */
export interface Described {
  readonly domain: string
  readonly uuid: string
}

/**
 * Each document is parsed once. @param from who gave it, for messages
 * @throws Failure `code`, for each document that is not what it has to be
 */
export function checkDefinitions(
  { inactiveXml, liveXml, networks, pools }: Definitions,
  described: Described,
  from: string,
  code: FailureCode,
): void {
  const refuse = (what: string, why: string): never => {
    throw new Failure(code, `${from}: the ${what} is refused: ${why}`)
  }
  const check = (what: string, xml: string, root: string, name: string, uuid?: string): void => {
    const element = rootOf(`${from}: the ${what}`, xml, code)
    if (element.nodeName !== root) refuse(what, `it is a <${element.nodeName}>, not a <${root}>`)
    const is = (tag: string, wanted: string): void => {
      const all = children(element, tag)
      const found = all.length === 1 ? (child(element, tag)?.textContent ?? '') : undefined
      if (found === undefined) refuse(what, `it has ${all.length} of <${tag}>, and must have one`)
      else if (found !== wanted)
        refuse(what, `its ${tag} is ${JSON.stringify(found.slice(0, 100))}, not ${wanted}`)
    }
    is('name', name)
    if (uuid !== undefined) is('uuid', uuid)
  }

  check('domain XML', inactiveXml, 'domain', described.domain, described.uuid)
  if (liveXml !== '') check('live domain XML', liveXml, 'domain', described.domain, described.uuid)
  for (const [kind, all] of [['network', networks] as const, ['pool', pools] as const])
    for (const { name, xml } of all)
      check(`XML of ${kind} ${JSON.stringify(name)}`, xml, kind, name)
}

/** @throws Failure `code` */
function rootOf(what: string, xml: string, code: FailureCode): Element {
  const refuse = (why: string): never => {
    throw new Failure(code, `${what} is refused: ${why}`)
  }
  if (!isText(xml)) refuse('it has control characters')
  const document = parseXml(what, xml, code)
  // The parser lets a bare & pass, others would not; comments and CDATA may have one.
  const text = xml.replaceAll(/<!--[^]*?-->|<!\[CDATA\[[^]*?\]\]>/g, '')
  if (/&(?!(?:amp|lt|gt|quot|apos|#\d{1,7}|#x[\da-f]{1,6});)/i.test(text)) refuse('it has a bare &')
  walk(document, refuse)
  const root = document.documentElement
  return root ?? refuse('it is empty')
}

/** In a loop, because a recursion would end where the document says. */
function walk(document: Node, refuse: (why: string) => never): void {
  const left: [node: Node, depth: number][] = [[document, 0]]
  for (let next = left.pop(); next; next = left.pop()) {
    const [node, depth] = next
    if (depth > DEEPEST) refuse(`it is nested deeper than ${DEEPEST}`)
    // An XML declaration is one, too: with it, what is UTF-8 here could be read as something else elsewhere.
    if (node.nodeType === node.PROCESSING_INSTRUCTION_NODE)
      refuse('it has a processing instruction')
    if (!isText(node.nodeValue ?? '')) refuse('it refers to control characters')
    const { attributes } = node as Partial<Pick<Element, 'attributes'>>
    for (const { value } of attributes ?? [])
      if (!isText(value)) refuse('it refers to control characters')
    for (let one = node.firstChild; one; one = one.nextSibling) left.push([one, depth + 1])
  }
}

/** What XML 1.0 calls characters, of which only white space controls anything; no half of a surrogate pair. */
function isText(text: string): boolean {
  return !/[^\t\n\r\P{Cc}]|\p{Surrogate}|[\uFFFE\uFFFF]/u.test(text)
}
