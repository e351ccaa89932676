// standby.yaml: what it accepts, what each mistake is told, and what an effective value says of its origin.

import t from 'tap'
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { configCheck, configShow } from '../client/commands/config.ts'
import { cloneConfig } from '../client/config/effective.ts'
import { standbyJsonSchema, standbySchema, type StandbyConfig } from '../client/config/schema.ts'
import { nbdAddress } from '../client/source/transport.ts'
import { parseConfig } from '../shared/config.ts'
import { Failure } from '../shared/failures.ts'
import { ROOT } from './lab/names.ts'

const parse = (text: string): StandbyConfig => parseConfig('standby.yaml', text, standbySchema)
const ALPHA = 'sources: { alpha: { transport: unix } }\n'

const MISTAKES: [what: string, text: string, says: RegExp][] = [
  ['an unknown key', 'stor: /x\n', /standby\.yaml:1: stor: unknown key/],
  [
    'an unknown key of a domain',
    `${ALPHA}domains:\n  web: { source: alpha, rop: 4h }\n`,
    /:3: domains\.web\.rop: unknown key/,
  ],
  ['a bare number as duration', 'defaults: { rpo: 4 }\n', /:1: defaults\.rpo: /],
  [
    'keep.last under 2',
    'defaults: { keep: { last: 1 } }\n',
    /keep\.last: keep\.last is at least 2/,
  ],
  [
    'a source that is not there',
    `${ALPHA}domains: { web: { source: beta } }\n`,
    /there is no source beta/,
  ],
  [
    'a group that is not there',
    `${ALPHA}domains: { web: { source: alpha, group: db } }\n`,
    /there is no group db/,
  ],
  ['no source at all', `${ALPHA}domains: { web: {} }\n`, /domains\.web: no source is set/],
  [
    'a name that could leave the store',
    `${ALPHA}domains: { ../web: { source: alpha } }\n`,
    /a name is 1 to 100/,
  ],
  ['ssh without host', 'sources: { a: { transport: ssh } }\n', /transport ssh needs host/],
  [
    'a gate here of a source that is there',
    'sources: { a: { transport: ssh, host: b, gate: local } }\n',
    /sources\.a\.gate: the gate of a source that is reached by ssh is there/,
  ],
  [
    'a command that would not be run',
    'sources: { a: { transport: ssh, host: b, gateCommand: [clone-server, gate] } }\n',
    /gateCommand is for gate: local/,
  ],
  [
    'a host key that is no fingerprint',
    'sources: { a: { transport: ssh, host: b, ssh: { hostKey: "AAAAC3Nza" } } }\n',
    /ssh\.hostKey: must be a fingerprint as ssh-keygen -l prints it/,
  ],
  [
    'transport tls without certificates',
    'sources: { a: { transport: tls, host: b } }\n',
    /transport tls needs tls: \{ ca, cert, key \}/,
  ],
  [
    'transport tls without host',
    'sources: { a: { transport: tls, tls: { ca: /ca, cert: /cert, key: /key } } }\n',
    /transport tls needs host/,
  ],
  [
    'certificates for a transport that does not use them',
    'sources: { a: { transport: unix, tls: { ca: /ca, cert: /cert, key: /key } } }\n',
    /tls is for transport tls, and this is unix/,
  ],
  [
    'a certificate at a relative path',
    'sources: { a: { transport: tls, host: b, tls: { ca: ca.pem, cert: /cert, key: /key } } }\n',
    /tls\.ca: must be an absolute path/,
  ],
  ['tcp without host', 'sources: { a: { transport: tcp } }\n', /transport tcp needs host/],
  [
    'tcp off loopback without insecure',
    'sources: { a: { transport: tcp, host: b } }\n',
    /NBD over tcp is unencrypted: set insecure: true/,
  ],
  [
    'gate ssh without host',
    'sources: { a: { transport: unix, gate: ssh } }\n',
    /gate ssh needs host/,
  ],
  [
    'a host that ssh would take for an option',
    'sources: { a: { transport: tcp, host: -oProxyCommand=x, insecure: true } }\n',
    /not a host name/,
  ],
  [
    'a user that ssh would take for an option',
    'sources: { a: { transport: tcp, host: b, insecure: true, ssh: { user: -lroot } } }\n',
    /not a user name/,
  ],
  ['a relative store', 'store: clones\n', /must be an absolute path/],
  [
    'an alias that grows and grows',
    'a: &a [1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\nd: [*c,*c,*c]\n',
    /:1: not valid YAML: Excessive alias count/,
  ],
  ['an alias of nothing', 'store: *nothing\n', /not valid YAML: /],
  ['a list in a list without end', '- '.repeat(20_000), /not valid YAML: |the file: /],
  [
    'a domain that would be a prototype',
    `${ALPHA}domains:\n  __proto__: { source: alpha }\n`,
    /:3: not valid YAML: __proto__ is no key/,
  ],
  [
    'a mode that YAML takes for a decimal number',
    `${ALPHA}defaults: { ownership: { mode: 0640 } }\n`,
    /defaults\.ownership\.mode: must be octal and in quotes/,
  ],
  [
    'a mode that lets all write',
    `${ALPHA}defaults: { ownership: { mode: '0666' } }\n`,
    /mode: must be octal: read and write for the owner/,
  ],
  [
    'an executable image',
    `${ALPHA}defaults: { ownership: { mode: '0750' } }\n`,
    /mode: must be octal: .* nothing to execute/,
  ],
  [
    'a folder that its owner cannot enter',
    `${ALPHA}defaults: { ownership: { dirMode: '0640' } }\n`,
    /dirMode: must be octal: all rights for the owner/,
  ],
  [
    'an owner that would be an option of getent',
    `${ALPHA}defaults: { ownership: { owner: --help } }\n`,
    /ownership\.owner: not a name or number/,
  ],
]

for (const [what, text, says] of MISTAKES)
  t.test(`${what} is refused with file, line, key and reason`, t => {
    t.throws(() => parse(text), { code: 'USAGE', message: says })
    t.end()
  })

t.test('the example parses, and every domain of it resolves', async t => {
  const file = path.join(ROOT, 'examples', 'standby.yaml')
  const config = parse(readFileSync(file, 'utf8'))
  t.strictSame(await configCheck(config), ['mydomain', 'orders', 'web-local'])
})

t.test('a value comes from the last layer that sets it, and says which', t => {
  const config = parse(
    `${ALPHA}defaults: { rpo: 12h, source: alpha }\ngroups: { db: { keep: { last: 5 } } }\n` +
      `domains: { web: { group: db, rpo: 4h, domain: www, disks: { vdb: { exclude: true } } } }\n`,
  )
  const clone = cloneConfig(config, 'web')
  t.match(clone, {
    name: 'web',
    domain: 'www',
    rpoMs: 4 * 3_600_000,
    keep: { last: 5 },
    stallMs: 60_000,
  })
  t.equal(clone.dir, '/var/lib/nbd-clone/clones/web')
  t.strictSame([...clone.excluded], ['vdb'])
  const [shown] = configShow(config, 'web')
  const from = (key: string) => shown?.values.find(value => value.key === key)?.origin
  t.equal(from('rpo'), 'domains.web')
  t.equal(from('keep.last'), 'groups.db')
  t.equal(from('source'), 'defaults')
  t.equal(from('stall'), 'built-in')
  t.equal(from('source.socket'), 'sources.alpha')
  t.end()
})

t.test('a domain that is not configured is named, with those that are', t => {
  const config = parse(`${ALPHA}domains: { web: { source: alpha } }\n`)
  t.throws(
    () => cloneConfig(config, 'wbe'),
    new Failure('USAGE', 'unknown domain "wbe"; configured: web'),
  )
  t.throws(() => cloneConfig(config, 'constructor'), { code: 'USAGE' })
  t.end()
})

t.test('a source over ssh needs no more than its host', t => {
  const config = parse(
    `sources:\n  here: { transport: unix }\n  there: { transport: ssh, host: a.example }\n` +
      `  line: { transport: tcp, host: a.example, insecure: true }\n` +
      `domains: { web: { source: here }, db: { source: there }, www: { source: line } }\n`,
  )
  t.match(cloneConfig(config, 'db').source, { gate: 'ssh', transport: 'ssh', host: 'a.example' })
  t.match(cloneConfig(config, 'www').source, { gate: 'ssh' })
  const here = cloneConfig(config, 'web').source
  t.match(here, { gate: 'local' })
  t.strictSame(here.gateCommand, ['clone-server', 'gate'])
  t.strictSame(nbdAddress(cloneConfig(config, 'www').source), { host: 'a.example', port: 10_809 })
  t.strictSame(nbdAddress(here), { path: '/run/nbd-clone/nbd.sock' })
  const [shown] = configShow(config, 'db')
  t.strictSame(
    shown?.values.filter(({ key }) => key === 'source.user'),
    [],
    'who runs the command is no setting',
  )
  t.end()
})

t.test('the JSON Schema describes what is written, not what it becomes', t => {
  t.match(standbyJsonSchema(), {
    properties: { defaults: { properties: { rpo: { type: 'string' } } } },
    additionalProperties: false,
  })
  t.end()
})
