// nbd-server's known bugs, by version, and which of them matter: serve gives each connection an nbd-server of its own, so
// most do not; the distribution's classic daemon with our hooks has more of them.

import { pass, warn, fail, type Outcome } from './finding.ts'

type Version = readonly number[]

export interface NbdServerBug {
  /** What goes wrong, and where it is reported. */
  readonly bug: string
  /** First version without it; undefined when no release is without it. */
  readonly fixedIn?: Version
  /** First version with it. */
  readonly since?: Version
  /** First GLib it shows with. */
  readonly glib?: Version
  /** What it does to `serve`: nothing, a thing to know, or a reason not to run at all. */
  readonly serve: 'nothing' | 'careful' | 'unsafe'
  readonly why: string
  /** What it means for the classic daemon, when it means more there. */
  readonly classic?: string
}

const BEARING = { nothing: 'no harm', careful: 'know it', unsafe: 'UNSAFE' } as const

/** From the project's issues, its source, and runs of 3.24, 3.26.1 and 3.27.1. */
export const NBD_SERVER_BUGS: readonly NbdServerBug[] = [
  {
    bug: 'any client can overflow its memory (CVE-2022-26495, CVE-2022-26496)',
    fixedIn: [3, 24],
    serve: 'unsafe',
    why: 'it runs as root',
  },
  {
    bug: 'hangs with GLib 2.76 and newer, because it forks after making threads (#146)',
    fixedIn: [3, 25],
    glib: [2, 76],
    serve: 'careful',
    why: 'serve has it not fork, but that was never tried with such a GLib',
    classic: 'clients hang: it cannot be used',
  },
  {
    bug: 'SIGHUP corrupts its memory (#102, #143)',
    fixedIn: [3, 25],
    serve: 'nothing',
    why: 'each connection has its own, never reloaded',
    classic: 'never reload it: systemctl restart nbd-server',
  },
  {
    bug: 'qemu shows a refusal as "magic mismatch"',
    fixedIn: [3, 26],
    serve: 'careful',
    why: 'the reason is in the log of serve',
  },
  {
    bug: 'spins for ever when a TLS client hangs up (#173)',
    fixedIn: [3, 27],
    serve: 'nothing',
    why: 'it speaks no TLS under serve',
    classic: 'do not set its TLS keys',
  },
  {
    bug: 'no postrun when a client is killed in its requests (#47)',
    serve: 'nothing',
    why: 'serve sees each of its nbd-servers end',
    classic: 'serve watches its processes too',
  },
  {
    bug: 'notices a dead peer after two hours only (#52)',
    serve: 'nothing',
    why: 'serve sets keepalive on each connection',
    classic: 'lower net.ipv4.tcp_keepalive_time, tcp_keepalive_intvl and tcp_keepalive_probes',
  },
  {
    bug: 'its maxconnections is used up for ever (#126)',
    serve: 'nothing',
    why: 'not used',
    classic: 'do not set it',
  },
  {
    bug: 'one request may make it take gigabytes of memory',
    serve: 'careful',
    why: 'let only trusted clients reach listen.tcp',
  },
  {
    bug: 'ends at once as a daemon under systemd (#182, #184)',
    since: [3, 27],
    serve: 'nothing',
    why: 'it is no daemon under serve',
    classic: 'its unit needs Type=simple and the option -n',
  },
]

/** `3.24` of "This is nbd-server version 3.24". */
export function parseVersion(text: string): Version | undefined {
  const found = /(\d+(?:\.\d+)+)/.exec(text)?.[1]
  return found?.split('.').map(Number)
}

/** Whether `a` is older than `b`. */
export function isOlder(a: Version, b: Version): boolean {
  for (const [at, part] of b.entries()) {
    const own = a[at] ?? 0
    if (own !== part) return own < part
  }
  return false
}

/** Bugs of one version. @param glib undefined when it is not known, which counts as affected */
export function bugsOf(version: Version, glib: Version | undefined): NbdServerBug[] {
  return NBD_SERVER_BUGS.filter(
    bug =>
      (bug.fixedIn === undefined || isOlder(version, bug.fixedIn)) &&
      (bug.since === undefined || !isOlder(version, bug.since)) &&
      (bug.glib === undefined || glib === undefined || !isOlder(glib, bug.glib)),
  )
}

/**
 * What to think of the nbd-server that is installed.
 * @param said its `-V`
 * @param glib version of the GLib that it is linked with
 * @param classic whether the classic daemon runs our hooks
 */
export function judgeNbdServer(said: string, glib: Version | undefined, classic: boolean): Outcome {
  const version = parseVersion(said)
  if (!version)
    return warn(
      `its version is not understood: ${said.trim().slice(0, 60)}`,
      'compare by hand with the table in docs/running.md',
    )
  const bugs = bugsOf(version, glib)
  const name = `${version.join('.')}${glib ? ` with GLib ${glib.join('.')}` : ''}`
  const notes = bugs.map(({ bug, fixedIn, serve, why, classic: daemon }) => {
    const until = fixedIn ? ` (until ${fixedIn.join('.')})` : ''
    const also = classic && daemon !== undefined ? `; classic daemon: ${daemon}` : ''
    return `${BEARING[serve]}: ${bug}${until}: ${why}${also}`
  })
  if (bugs.some(bug => bug.serve === 'unsafe'))
    return {
      ...fail(`${name} is not safe to run`, 'upgrade nbd-server to 3.24 or newer'),
      notes,
    }
  const known = `${bugs.length} known bug${bugs.length === 1 ? '' : 's'}`
  if (classic && bugs.some(bug => bug.classic !== undefined))
    return warn(
      `${name}; ${known}, and the classic daemon has our hooks`,
      'let clients connect to clone-server serve instead, or heed the lines below',
      notes,
    )
  const risky = bugs.find(bug => bug.glib !== undefined)
  if (risky && glib)
    return warn(`${name}: ${risky.bug}`, 'upgrade nbd-server to 3.25 or newer', notes)
  return pass(`${name}; ${known} of this version, none harms serve`, notes)
}
