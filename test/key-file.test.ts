// The authorized_keys file of another user, as root changes it: its owner keeps it, and leads nobody astray by links.

import { execFileSync } from 'node:child_process'
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import t, { type Test } from 'tap'
import { openKeyFile } from '../server/clients/key-file.ts'
import { ownKeyFile } from '../server/commands/authorize.ts'

/** A home with `.ssh` in it, and a folder that is none of its owner's. */
async function aHome(t: Test) {
  const dir = await mkdtemp(path.join(tmpdir(), 'nbd-clone-test-'))
  t.teardown(() => rm(dir, { recursive: true, force: true }))
  const ssh = path.join(dir, 'home', '.ssh')
  const foreign = path.join(dir, 'foreign')
  mkdirSync(ssh, { recursive: true, mode: 0o700 })
  mkdirSync(foreign, { mode: 0o700 })
  writeFileSync(path.join(foreign, 'authorized_keys'), 'theirs\n')
  return { dir, ssh, foreign, file: path.join(ssh, 'authorized_keys') }
}

async function rewrite(file: string, meanwhile: () => void = () => undefined): Promise<string> {
  await using opened = await openKeyFile(file)
  if (!opened) throw new Error('no directory')
  meanwhile()
  await opened.write('ours\n')
  return opened.text
}

t.test('a file is replaced, with its owner and mode; one that is not there is empty', async t => {
  const { ssh, file } = await aHome(t)
  t.equal(await rewrite(file), '')
  t.equal(statSync(file).mode & 0o777, 0o600)
  chmodSync(file, 0o640)
  writeFileSync(file, 'older\n')
  t.equal(await rewrite(file), 'older\n')
  t.equal(readFileSync(file, 'utf8'), 'ours\n')
  t.equal(statSync(file).mode & 0o777, 0o640)
  t.strictSame(readdirSync(ssh), ['authorized_keys'], 'and nothing is left beside it')
  t.equal(await openKeyFile(path.join(ssh, 'not/there')), undefined)
})

t.test('a new file belongs to whoever its directory belongs to', async t => {
  if (process.getuid?.() !== 0) return
  const { ssh, file } = await aHome(t)
  execFileSync('chown', ['65534:65534', ssh])
  await rewrite(file)
  t.match(statSync(file), { uid: 65534, gid: 65534 })
})

t.test('a link in the place of the file, of its directory, or of one above is refused', async t => {
  const { dir, ssh, foreign, file } = await aHome(t)
  symlinkSync(path.join(foreign, 'authorized_keys'), file)
  await t.rejects(openKeyFile(file), {
    code: 'UNSAFE',
    message: /authorized_keys is no plain file/,
  })
  rmSync(ssh, { recursive: true })
  symlinkSync(foreign, ssh)
  await t.rejects(openKeyFile(file), {
    code: 'UNSAFE',
    message: `${ssh} leads through a link to ${foreign}`,
    remedy: `if that is what is meant, name it as it is: --file ${foreign}/authorized_keys`,
  })
  symlinkSync(path.join(dir, 'home'), path.join(dir, 'way'))
  rmSync(ssh)
  mkdirSync(ssh)
  await t.rejects(openKeyFile(path.join(dir, 'way/.ssh/authorized_keys')), {
    code: 'UNSAFE',
    message: new RegExp(`way/\\.ssh leads through a link to ${dir}/home/\\.ssh`),
  })
  t.equal(await rewrite(file), '')
})

t.test('a directory that is swapped for a link in between leads nowhere', async t => {
  const { ssh, foreign, file } = await aHome(t)
  writeFileSync(file, 'mine\n')
  const text = await rewrite(file, () => {
    renameSync(ssh, `${ssh}.old`)
    symlinkSync(foreign, ssh)
  })
  t.equal(text, 'mine\n')
  t.equal(readFileSync(path.join(foreign, 'authorized_keys'), 'utf8'), 'theirs\n')
  t.equal(readFileSync(path.join(`${ssh}.old`, 'authorized_keys'), 'utf8'), 'ours\n')
  t.strictSame(readdirSync(foreign), ['authorized_keys'])
})

t.test('what is laid in the place of the file in between is replaced, not followed', async t => {
  const { foreign, file } = await aHome(t)
  const target = path.join(foreign, 'authorized_keys')
  await rewrite(file, () => symlinkSync(target, file))
  t.equal(readFileSync(target, 'utf8'), 'theirs\n')
  t.notOk(statSync(file).isSymbolicLink())
  t.equal(readFileSync(file, 'utf8'), 'ours\n')
})

t.test('a pipe in its place keeps nobody waiting', async t => {
  const { file } = await aHome(t)
  execFileSync('mkfifo', [file])
  await t.rejects(openKeyFile(file), { code: 'UNSAFE' })
  t.ok(existsSync(file))
})

t.test('a home that is a link of the host is no link to be warned of', async t => {
  const { dir } = await aHome(t)
  const before = process.env['HOME']
  t.teardown(() => (process.env['HOME'] = before))
  symlinkSync(path.join(dir, 'home'), path.join(dir, 'root'))
  process.env['HOME'] = path.join(dir, 'root')
  t.equal(await ownKeyFile(), path.join(dir, 'home/.ssh/authorized_keys'))
})
