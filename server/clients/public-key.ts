// A client's public key: read from a file, from the words of the command line or from standard input, and checked.

import { createHash } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import ssh2 from 'ssh2'
import { Failure } from '../../shared/failures.ts'

export interface PublicKey {
  /** e.g. `ssh-ed25519`. */
  readonly type: string
  /** The key itself, base64, as ssh writes it. */
  readonly blob: string
  readonly comment: string
  /** As ssh-keygen -l prints it: `SHA256:...`. */
  readonly fingerprint: string
}

/** Longer than any key that sshd reads. */
const MAX_KEY = 16 * 1024
/** Types that sshd accepts by default, and ssh2 knows. */
const TYPES = [
  'ssh-ed25519',
  'ssh-rsa',
  'ecdsa-sha2-nistp256',
  'ecdsa-sha2-nistp384',
  'ecdsa-sha2-nistp521',
]
const LOOKS_LIKE_KEY = /^(ssh|ecdsa|sk)-\S+\s/

/**
 * @param key a file, the key's text, or `-` for standard input
 * @param readInput reads standard input to its end
 * @throws Failure USAGE
 */
export async function readPublicKey(
  key: string,
  readInput: () => Promise<string>,
): Promise<PublicKey> {
  if (key === '-') return parsePublicKey('standard input', await readInput())
  if (LOOKS_LIKE_KEY.test(key) || key.includes('PRIVATE KEY')) return parsePublicKey('the key', key)
  const text = await readFile(key, 'utf8').catch((error: unknown) => {
    const { code, message } = error as NodeJS.ErrnoException
    const reason = code === 'ENOENT' ? 'no such file, and no key either' : (code ?? message)
    throw new Failure('USAGE', `cannot read the key ${JSON.stringify(key)}: ${reason}`, {
      cause: error,
      remedy: 'name the public key of the standby: FILE.pub, its text, or - for standard input',
    })
  })
  return parsePublicKey(key, text)
}

/** @param where for messages. @throws Failure USAGE unless the text is exactly one public key without options */
export function parsePublicKey(where: string, text: string): PublicKey {
  const wrong = (why: string, remedy?: string): Failure =>
    new Failure('USAGE', `${where}: ${why}`, { remedy })
  if (text.length > MAX_KEY) throw wrong('too long for a public key')
  if (/PRIVATE KEY|PuTTY-User-Key-File/.test(text))
    throw wrong(
      'that is a private key, which must never leave its host',
      'give the public one: the file that ends in .pub, or what ssh-keygen -y -f FILE prints',
    )
  const lines = text.split(/\r?\n/).filter(line => line.trim() !== '' && !line.startsWith('#'))
  const [line = '', ...more] = lines
  if (more.length > 0) throw wrong(`${lines.length} lines where one public key should be`)
  const [, type = '', blob = '', comment = ''] = /^(\S+) +(\S+) *(.*)$/s.exec(line.trim()) ?? []
  if (!TYPES.includes(type)) {
    if (TYPES.some(one => line.includes(`${one} `)))
      throw wrong(
        'the line begins with options',
        'give the key alone: clone-server writes the options',
      )
    throw wrong(
      `no public key of a type that is known here: ${TYPES.join(', ')}`,
      'make one on the standby: ssh-keygen -t ed25519',
    )
  }
  const parsed = ssh2.utils.parseKey(`${type} ${blob}`)
  if (parsed instanceof Error || Array.isArray(parsed))
    throw wrong('the public key is damaged', 'copy the whole line of the .pub file')
  const bytes = parsed.getPublicSSH()
  const canonical = bytes.toString('base64')
  if (parsed.type !== type || canonical !== blob)
    throw wrong('the public key is damaged', 'copy the whole line of the .pub file')
  const hash = createHash('sha256').update(bytes).digest('base64').replace(/=+$/, '')
  return { type, blob: canonical, comment: plain(comment), fingerprint: `SHA256:${hash}` }
}

/** A comment is for people: what could end the line, or hide something in it, goes. */
function plain(comment: string): string {
  return comment
    .replace(/[^\x20-\x7e]/g, '')
    .trim()
    .slice(0, 200)
}
