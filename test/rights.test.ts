// The rights of a client as they are written: addresses and ranges, where one may come from, and what takes rights away.

import t from 'tap'
import { isNarrower } from '../server/clients/narrower.ts'
import { networkOf, rangeOf } from '../server/clients/ranges.ts'
import { rightsText } from '../server/clients/registry.ts'
import { permitPeer, type Rights } from '../server/clients/rights.ts'

t.test(
  'a range has no bits beyond its prefix, as sshd wants it, else the network is named',
  async t => {
    const table: [range: string, network: string][] = [
      ['192.0.2.7', '192.0.2.7/32'],
      ['192.0.2.7/24', '192.0.2.0/24'],
      ['192.0.2.7/31', '192.0.2.6/31'],
      ['192.0.2.7/0', '0.0.0.0/0'],
      ['255.255.255.255/1', '128.0.0.0/1'],
      ['192.0.2.0/24', '192.0.2.0/24'],
      ['2001:db8::7/64', '2001:db8::/64'],
      ['2001:DB8:1:2:3:4:5:6/33', '2001:db8::/33'],
      ['::ffff:192.0.2.7/120', '::ffff:c000:200/120'],
      ['::1/0', '::/0'],
      ['fe80::1%eth0/64', 'fe80::/64'],
      ['2001:DB8::/32', '2001:DB8::/32'],
      ['::/0', '::/0'],
    ]
    for (const [text, network] of table) {
      const range = rangeOf(text)
      t.equal(range && networkOf(range), network, text)
      const write = (): string => rightsText('alice', { domains: 'all', from: [text] })
      if (!text.includes('/') || text === network) t.match(write(), text)
      else
        t.throws(write, {
          code: 'USAGE',
          message: new RegExp(
            `from\\.0: ${text.replaceAll('.', '\\.')} is no network: .* ${network.replaceAll('.', '\\.')}$`,
          ),
        })
    }
    for (const text of [
      '',
      '192.0.2.7/',
      '192.0.2.7/33',
      '192.0.2.7/-1',
      '192.0.2.0/24/24',
      'a/8',
      '::/129',
    ])
      t.equal(rangeOf(text), undefined, text)
  },
)

t.test('where a client may come from', async t => {
  const from = ['192.0.2.7', '198.51.100.0/24', '2001:db8::/32']
  const table: [peer: string | undefined, may: boolean][] = [
    ...(['192.0.2.7', '198.51.100.255', '2001:db8::1', '::ffff:192.0.2.7'] as const).map(
      (peer): [string, boolean] => [peer, true],
    ),
    ...(['192.0.2.8', '198.51.101.1', '2001:db9::1', 'unix', '', undefined] as const).map(
      (peer): [string | undefined, boolean] => [peer, false],
    ),
  ]
  for (const [peer, may] of table) {
    const permitted = (): void => permitPeer('a', { domains: 'all', verbs: [], from }, peer)
    if (may) t.doesNotThrow(permitted, String(peer))
    else t.throws(permitted, { code: 'SOURCE_REFUSED', message: /may not come from/ }, String(peer))
  }
})

t.test('what makes rights narrower', async t => {
  const rights = (changes: Partial<Rights>): Rights => ({
    ...{ domains: ['web', 'db'], verbs: ['describe', 'pull'], ...changes },
  })
  const net = (...from: string[]) => rights({ from })
  const table: [what: string, before: Rights | undefined, after: Rights, is: boolean][] = [
    ['the same', rights({}), rights({}), false],
    ['unknown before', undefined, rights({}), true],
    ['a domain less', rights({}), rights({ domains: ['web'] }), true],
    ['a domain more', rights({ domains: ['web'] }), rights({}), false],
    ['all, then some', rights({ domains: 'all' }), rights({}), true],
    ['some, then all', rights({}), rights({ domains: 'all' }), false],
    ['a verb less', rights({}), rights({ verbs: ['pull'] }), true],
    ['a verb more', rights({}), rights({ verbs: ['describe', 'pull', 'digests'] }), false],
    ['a limit', rights({}), rights({ bandwidth: 1e6 }), true],
    ['a lower limit', rights({ bandwidth: 2e6 }), rights({ bandwidth: 1e6 }), true],
    ['a higher limit', rights({ bandwidth: 1e6 }), rights({ bandwidth: 2e6 }), false],
    ['no limit any more', rights({ bandwidth: 1e6 }), rights({}), false],
    ['addresses', rights({}), net('192.0.2.0/24'), true],
    ['from anywhere', net('192.0.2.0/24'), rights({}), false],
    ['a smaller network', net('192.0.2.0/24'), net('192.0.2.0/25'), true],
    ['a larger network', net('192.0.2.128/25'), net('192.0.2.0/24'), false],
    ['another network', net('192.0.2.0/25'), net('192.0.2.128/25'), true],
    ['one address of a network', net('192.0.2.0/24'), net('192.0.2.7'), true],
    ['the network of an address', net('2001:db8::7'), net('2001:db8::/32', '192.0.2.7'), false],
    ['another family', net('192.0.2.7'), net('::/0'), true],
  ]
  for (const [what, before, after, is] of table) t.equal(isNarrower(before, after), is, what)
})
