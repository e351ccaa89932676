// Domain XML from a source or a folder: what is taken for a domain's definition, and what is refused, with its reason.

import t from 'tap'
import { checkDefinitions, type Definitions } from '../client/source/definition.ts'
import { Failure } from '../shared/failures.ts'
import { DOMAIN_UUID, fakeSource } from './client/fake-source.ts'
import { NOBODY } from '../client/attempt.ts'
import { cloneConfig, loadConfig } from '../client/config/effective.ts'
import { pull } from '../client/pull.ts'
import { soundGenerations } from '../client/store/generation.ts'
import { pino } from 'pino'

const MIB = 1024 * 1024
const NAME = '<name>web</name>'
const UUID = `<uuid>${DOMAIN_UUID}</uuid>`
const domain = (inside = '', attributes = ''): string =>
  `<domain${attributes}>${NAME}${UUID}${inside}</domain>`

const GOOD: Definitions = {
  inactiveXml: domain(),
  liveXml: domain('', ` type='kvm' id='3'`),
  networks: [{ name: 'default', xml: '<network><name>default</name></network>' }],
  pools: [{ name: 'vms', xml: `<pool type='dir'><name>vms</name></pool>` }],
}

function check(definitions: Partial<Definitions>): void {
  const described = { domain: 'web', uuid: DOMAIN_UUID }
  checkDefinitions({ ...GOOD, ...definitions }, described, 'source alpha', 'SOURCE_REFUSED')
}

t.test('what libvirt writes is taken', t => {
  const table: [what: string, definitions: Partial<Definitions>][] = [
    ['both definitions, a network and a pool', {}],
    ['a domain that is off', { liveXml: '', networks: [], pools: [] }],
    [
      'a namespace, as for arguments of QEMU',
      {
        inactiveXml: domain(
          `<qemu:commandline><qemu:arg value='-snapshot'/></qemu:commandline>`,
          ` xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'`,
        ),
      },
    ],
    [
      'umlauts, references, comments and CDATA',
      {
        inactiveXml: domain(
          '<title>Büro 💾 &amp; &lt;Küche&gt; &#228;&#x1F4BE;</title><!-- a & b --><metadata><a><![CDATA[c & d]]></a></metadata>',
        ),
      },
    ],
    ['white space', { inactiveXml: `\n${domain('\r\n\t')}\n` }],
    [
      'a thousand devices',
      { inactiveXml: domain(`<disk type='file'><target dev='vda'/></disk>`.repeat(1000)) },
    ],
    [
      'paths that lead anywhere: nothing is started',
      { inactiveXml: domain(`<devices><disk><source file='/etc/shadow'/></disk></devices>`) },
    ],
  ]
  for (const [what, definitions] of table) t.doesNotThrow(() => check(definitions), what)
  t.end()
})

t.test('what is no definition of the domain is refused, with the reason', t => {
  const table: [what: string, xml: string, why: RegExp][] = [
    ['nothing', '', /missing root element/],
    ['no XML', 'hello', /missing root element/],
    ['half of it', domain().slice(0, -3), /domain XML refused: /],
    ['two of it', domain() + domain(), /refused: .*Only one/],
    ['tags that cross', domain('<a><b></a></b>'), /tag mismatch/],
    ['an attribute twice', domain(`<a b='1' b='2'/>`), /redefined/],
    ['an attribute without quotes', domain('<a b=1/>'), /missed quot/],
    ['a bare &', domain('<a>you & me</a>'), /a bare &/],
    [
      'an entity',
      `<!DOCTYPE domain [<!ENTITY a "b">]>${domain('<title>&a;</title>')}`,
      /it has a doctype/,
    ],
    [
      'entities that grow',
      `<!DOCTYPE d [<!ENTITY a "bbbb"><!ENTITY c "&a;&a;&a;&a;">]>${domain('&c;')}`,
      /it has a doctype/,
    ],
    [
      'an entity of the outside',
      `<!doctype d [<!ENTITY a SYSTEM "file:///etc/passwd">]>${domain('&a;')}`,
      /it has a doctype/,
    ],
    ['an entity that nobody declared', domain('&a;'), /entity not found/],
    ['an element declaration', domain('<!ELEMENT a ANY>'), /refused/],
    ['another root', `<network>${NAME}${UUID}</network>`, /it is a <network>, not a <domain>/],
    ['a root in a namespace', `<a:domain xmlns:a='b'>${NAME}${UUID}</a:domain>`, /<a:domain>/],
    ['no name', `<domain>${UUID}</domain>`, /it has 0 of <name>, and must have one/],
    ['another name', `<domain><name>db</name>${UUID}</domain>`, /its name is "db", not web/],
    ['two names', domain('<name>db</name>'), /it has 2 of <name>/],
    ['a name further down', `<domain><a>${NAME}</a>${UUID}</domain>`, /it has 0 of <name>/],
    ['no uuid', `<domain>${NAME}</domain>`, /it has 0 of <uuid>/],
    [
      'another uuid',
      domain().replace(DOMAIN_UUID, DOMAIN_UUID.replaceAll('0', '1')),
      /its uuid is "1d3b/,
    ],
    ['a NUL', domain('\0'), /it has control characters/],
    ['an escape sequence', domain('<title>\x1b[2J</title>'), /it has control characters/],
    ['a reference to NUL', domain('<title>&#0;</title>'), /it refers to control characters/],
    ['the same in an attribute', domain(`<a b='&#x1b;[2J'/>`), /it refers to control characters/],
    ['half a character', domain('<title>\ud83d</title>'), /it has control characters/],
    ['a reference beyond Unicode', domain('&#x110000;'), /it refers to control characters/],
    ['a declaration of its encoding', `<?xml version='1.0' encoding='UTF-7'?>${domain()}`, /instr/],
    ['a style sheet', domain('<?xml-stylesheet href="a"?>'), /it has a processing instruction/],
    ['more than 4 MiB', domain(' '.repeat(4 * MIB)), /larger than 4 MiB/],
    ['4 MiB in two bytes each', domain('ä'.repeat(2 * MIB)), /larger than 4 MiB/],
    ['absurdly deep', domain('<a>'.repeat(100) + '</a>'.repeat(100)), /nested deeper than 64/],
    ['absurdly many elements', domain('<a/>'.repeat(60_000)), /more than 50000 tags/],
    [
      'absurdly many attributes',
      domain(`<a ${Array.from({ length: 210_000 }, (_, at) => `a${at}=''`).join(' ')}/>`),
      /more than 200000 attributes/,
    ],
    [
      'absurdly many namespaces',
      domain(Array.from({ length: 300 }, (_, at) => `<a xmlns:b${at}='c'/>`).join('')),
      /more than 256 namespaces/,
    ],
  ]
  for (const [what, xml, why] of table) {
    t.throws(() => check({ inactiveXml: xml }), { code: 'SOURCE_REFUSED', message: why }, what)
    if (xml === '') continue
    t.throws(() => check({ liveXml: xml }), { message: /^source alpha: the live domain XML/ }, what)
  }
  const pool = `<pool><name>vms</name></pool>`
  t.throws(() => check({ networks: [{ name: 'vms', xml: pool }] }), {
    message: /XML of network "vms" is refused: it is a <pool>, not a <network>/,
  })
  t.throws(() => check({ pools: [{ name: 'other', xml: pool }] }), {
    message: /XML of pool "other" is refused: its name is "vms", not other/,
  })
  t.end()
})

t.test('the worst that 4 MiB can hold is judged in seconds, and told in a line', t => {
  const worst = [
    domain('<a>'.repeat(24_000) + '</a>'.repeat(24_000)),
    domain(`<a ${Array.from({ length: 199_000 }, (_, at) => `a${at}=''`).join(' ')}/>`),
    domain('&amp;'.repeat(800_000)),
    domain('<!--' + '-'.repeat(4 * MIB - 1000)),
    domain(`<a b='${'\n'.repeat(4 * MIB - 1000)}'/>`),
  ]
  for (const xml of worst) {
    const began = performance.now()
    try {
      check({ inactiveXml: xml })
    } catch (error) {
      t.type(error, Failure)
      t.ok((error as Failure).message.length < 500)
    }
    t.ok(performance.now() - began < 10_000, `${xml.slice(-30)} in time`)
  }
  t.end()
})

t.test('a source with a hostile definition is pulled nothing of', async t => {
  const source = await fakeSource({ vda: Buffer.alloc(MIB, 1) })
  t.teardown(() => source[Symbol.asyncDispose]())
  const usual = source.handlers['session.info']
  source.handlers['session.info'] = async params => ({
    ...(await usual(params)),
    liveXml: '<!DOCTYPE domain [<!ENTITY a "b">]><domain>&a;</domain>',
  })
  const clone = cloneConfig(loadConfig(source.configFile), 'mydomain')
  const signal = new AbortController().signal
  const log = pino({ level: 'silent' })
  await t.rejects(pull(clone, { adopt: false, full: false, signal, log, watcher: NOBODY }), {
    code: 'SOURCE_REFUSED',
    message: /^source alpha: the live domain XML refused: it has a doctype/,
  })
  t.strictSame(await soundGenerations(clone.dir), [])
  t.ok(source.calls.includes('session.release'), 'and the source has its session back')
})
