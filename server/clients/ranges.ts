// Addresses and ranges of them, as sshd's from= takes them: one address, or a network with the length of its prefix.

import { BlockList, isIP, isIPv6 } from 'node:net'

export interface Range {
  readonly address: string
  readonly prefix: number
  readonly family: 'ipv4' | 'ipv6'
}

const BITS = { ipv4: 32, ipv6: 128 } as const

/** undefined when it is neither an address nor a range. */
export function rangeOf(text: string): Range | undefined {
  const [address = '', prefix, ...more] = text.split('/')
  if (more.length > 0 || isIP(address) === 0) return undefined
  const family = isIPv6(address) ? ('ipv6' as const) : ('ipv4' as const)
  const bits = BITS[family]
  if (prefix === undefined) return { address, prefix: bits, family }
  if (!/^\d{1,3}$/.test(prefix) || Number(prefix) > bits) return undefined
  return { address, prefix: Number(prefix), family }
}

/** The network that an address lies in; the same text when it has no bits beyond the prefix. */
export function networkOf({ address, prefix, family }: Range): string {
  const bits = bitsOf(address, family)
  const network = upTo(prefix, bits, family)
  return `${network === bits ? address : textOf(network, family)}/${prefix}`
}

/** Whether every address of a range is in another one. */
export function isWithin(inner: Range, outer: Range): boolean {
  const { prefix, family } = outer
  if (inner.family !== family || inner.prefix < prefix) return false
  const [one, other] = [inner, outer].map(({ address }) =>
    upTo(prefix, bitsOf(address, family), family),
  )
  return one === other
}

/** Whether an address is in one of the ranges. @param peer an address; anything else is not */
export function isFrom(from: readonly string[], peer: string | undefined): boolean {
  const plain = peer?.replace(/%.*$/, '') ?? ''
  if (isIP(plain) === 0) return false
  const list = new BlockList()
  for (const range of from.flatMap(text => rangeOf(text) ?? []))
    list.addSubnet(range.address, range.prefix, range.family)
  return list.check(plain, isIPv6(plain) ? 'ipv6' : 'ipv4')
}

function upTo(prefix: number, bits: bigint, family: Range['family']): bigint {
  const rest = BigInt(BITS[family] - prefix)
  return (bits >> rest) << rest
}

function bitsOf(address: string, family: Range['family']): bigint {
  if (family === 'ipv4')
    return address.split('.').reduce((bits, part) => (bits << 8n) | BigInt(part), 0n)
  // A URL has an address in one form: hexadecimal, and short.
  const short = new URL(`http://[${address.replace(/%.*$/, '')}]`).hostname.slice(1, -1)
  const [head = [], tail = []] = short.split('::').map(part => part.split(':').filter(Boolean))
  const zeros = Array<string>(8 - head.length - tail.length).fill('0')
  return [...head, ...zeros, ...tail].reduce(
    (bits, part) => (bits << 16n) | BigInt(`0x${part}`),
    0n,
  )
}

function textOf(bits: bigint, family: Range['family']): string {
  const width = family === 'ipv4' ? 8n : 16n
  const count = family === 'ipv4' ? 4 : 8
  const parts = Array.from({ length: count }, (_, at) =>
    Number((bits >> (BigInt(count - 1 - at) * width)) & ((1n << width) - 1n)),
  )
  if (family === 'ipv4') return parts.join('.')
  const long = parts.map(part => part.toString(16)).join(':')
  return new URL(`http://[${long}]`).hostname.slice(1, -1)
}
