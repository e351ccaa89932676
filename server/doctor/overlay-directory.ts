// The directory of a domain's overlays: there, on disk, with room, reachable for QEMU and its confinement, and mounted
// before libvirt may start a domain that lies on an overlay.

import { access, constants, readFile, stat, statfs } from 'node:fs/promises'
import { run } from '../../shared/host/run.ts'
import { formatSize, shareOf, type Share } from '../../shared/quantities.ts'
import { roomNeeded } from '../session/limits.ts'
import { bytesOf } from './disks.ts'
import type { DomainFacts } from './domain.ts'
import { fail, pass, skip, warn, type Check, type Outcome } from './finding.ts'
import { isInMemory } from './host.ts'
import { NO_LIBVIRT } from './libvirt.ts'

async function lookAtPlace({ settings: { overlayDir } }: DomainFacts): Promise<Outcome> {
  const found = await stat(overlayDir).catch((error: unknown) => error as NodeJS.ErrnoException)
  if (found instanceof Error)
    return fail(
      `overlayDir ${overlayDir}: ${found.code ?? found.message}`,
      `mount its file system, or: mkdir -m 711 ${overlayDir}`,
    )
  if (!found.isDirectory())
    return fail(`overlayDir ${overlayDir} is no directory`, 'correct source.yaml')
  if (await isInMemory(overlayDir))
    return fail(
      `overlayDir ${overlayDir} is in memory: a reboot would lose what the guest wrote`,
      'set overlayDir to a directory on disk',
    )
  try {
    await access(overlayDir, constants.W_OK | constants.X_OK)
  } catch (error) {
    return fail(
      `overlayDir ${overlayDir} cannot be written: ${(error as NodeJS.ErrnoException).code ?? String(error)}`,
      `is its file system mounted read-only? findmnt -T ${overlayDir}`,
    )
  }
  return pass(`overlayDir ${overlayDir} is on disk and can be written`)
}

/** @param usable bytes above the reserve @param bytes of the disks, if they are known @param max what an overlay may take */
export function judgeSpace(
  overlayDir: string,
  usable: number,
  bytes: number | undefined,
  max: Share,
): Outcome {
  const free = formatSize(Math.max(0, Math.round(usable)))
  if (bytes === undefined)
    return usable <= 0
      ? fail(`${overlayDir}: nothing is free above the reserve`, 'free space there', 'SPACE')
      : skip(`${overlayDir}: ${free} above the reserve; the size of the disks is not known`)
  const needed = roomNeeded(max, bytes)
  const asked = formatSize(Math.round(needed))
  if (usable < needed)
    return fail(
      `${overlayDir}: ${free} above the reserve, ${asked} needed`,
      'free space there, or set overlayDir to a larger file system',
      'SPACE',
    )
  if (usable < shareOf(max, bytes))
    return warn(
      `${overlayDir}: ${free} above the reserve is enough to begin (${asked}), but less than the overlays may take (overlay.max)`,
      'pull when the guest writes little, or set overlayDir to a larger file system',
    )
  return pass(`${overlayDir}: ${free} above the reserve, ${asked} needed`)
}

async function lookAtSpace(facts: DomainFacts): Promise<Outcome> {
  const { overlayDir, overlay } = facts.settings
  const found = await statfs(overlayDir).catch(() => undefined)
  if (!found) return skip(`${overlayDir} is not there`)
  const usable = found.bavail * found.bsize - shareOf(overlay.reserve, found.blocks * found.bsize)
  return judgeSpace(overlayDir, usable, await bytesOf(facts), overlay.max)
}

/** Asks as QEMU's own user, so groups and ACLs count. */
async function lookAtAccess({ settings: { overlayDir }, libvirt }: DomainFacts): Promise<Outcome> {
  if (libvirt.unreachable !== undefined) return skip(NO_LIBVIRT)
  const { qemuUser } = libvirt
  if (!qemuUser) return skip('libvirt does not say which user QEMU runs as')
  const { uid, gid } = qemuUser
  if (uid === 0) return pass('QEMU runs as root')
  const result = await run('setpriv', [
    ...[`--reuid=${uid}`, `--regid=${gid}`, '--init-groups', '--'],
    ...['test', '-x', overlayDir],
  ])
  if (result.exitCode === 0) return pass(`QEMU (user ${uid}) can reach ${overlayDir}`)
  if (result.exitCode !== 1 || result.stderr !== '')
    return skip(
      `whether user ${uid} reaches ${overlayDir} could not be tried: ${result.stderr.trim()}`,
    )
  return fail(
    `QEMU (user ${uid}) cannot reach ${overlayDir}`,
    `let it pass through each directory: namei -l ${overlayDir}; chmod o+x or setfacl`,
  )
}

/** Where virt-aa-helper refuses to put any file into a domain's profile. */
const RESTRICTED = /^\/(bin|boot|dev|etc|initrd|lib|lost\+found|proc|sbin|selinux|sys|usr)(\/|$)/

/** Overlays end in .qcow2, which virt-aa-helper may read in any place but these. */
export function judgeAppArmorPlace(overlayDir: string, models: readonly string[]): Outcome {
  if (!models.includes('apparmor')) return pass('no AppArmor in libvirt')
  if (RESTRICTED.test(`${overlayDir}/`))
    return fail(
      `libvirt's AppArmor helper accepts no image below ${overlayDir}`,
      'set overlayDir below /var/lib/libvirt/images',
    )
  return pass("overlays are named *.qcow2, which libvirt's AppArmor helper reads in any place")
}

interface Mount {
  readonly point: string
  readonly source: string
}

/** The mount that a path lies on. @param text of /proc/self/mountinfo */
export function mountOf(text: string, file: string): Mount {
  const unescape = (word: string): string =>
    word.replaceAll(/\\(\d{3})/g, (_, octal: string) => String.fromCharCode(parseInt(octal, 8)))
  const mounts = text.split('\n').flatMap(line => {
    const [before = '', after = ''] = line.split(' - ')
    const point = before.split(' ')[4]
    return point === undefined
      ? []
      : [{ point: unescape(point), source: unescape(after.split(' ')[1] ?? '') }]
  })
  const holding = mounts.filter(
    ({ point }) => point === '/' || file === point || file.startsWith(`${point}/`),
  )
  const longest = Math.max(0, ...holding.map(({ point }) => point.length))
  // Of mounts on one point the last one hides the others.
  return holding.findLast(({ point }) => point.length === longest) ?? { point: '/', source: '' }
}

/** After a power cut libvirt starts such a domain by itself, on its overlay if it was in a session. */
export function judgeAutostart(autostart: boolean, mount: Mount, fstab: string): Outcome {
  if (!autostart) return pass('no autostart')
  if (mount.point === '/') return pass('autostart; overlayDir is on the root file system')
  const entry = fstab
    .split('\n')
    .map(line => line.trim().split(/\s+/))
    .find(([first = '#', point]) => !first.startsWith('#') && point === mount.point)
  const options = entry?.[3]?.split(',') ?? []
  if (entry && !options.includes('noauto') && !options.includes('nofail'))
    return pass(
      `autostart; overlayDir is on ${mount.point}, which fstab mounts before services start`,
    )
  return warn(
    `autostart; overlayDir is on ${mount.point}, which may not be mounted when libvirt starts`,
    `mount it in fstab without nofail and noauto, or let libvirtd wait: systemctl edit libvirtd, [Unit] RequiresMountsFor=${mount.point}`,
  )
}

async function lookAtAutostart(facts: DomainFacts): Promise<Outcome> {
  const { known, settings } = facts
  if (known === undefined) return skip(NO_LIBVIRT)
  if (known instanceof Error) return skip('libvirt does not know the domain')
  const [mounts, fstab] = await Promise.all(
    ['/proc/self/mountinfo', '/etc/fstab'].map(file => readFile(file, 'utf8').catch(() => '')),
  )
  return judgeAutostart(
    known.info.autostart,
    mountOf(mounts ?? '', settings.overlayDir),
    fstab ?? '',
  )
}

export const OVERLAY_CHECKS: readonly Check<DomainFacts>[] = [
  { check: 'overlays', look: lookAtPlace },
  { check: 'space', look: lookAtSpace },
  { check: 'access', look: lookAtAccess },
  {
    check: 'AppArmor',
    look: ({ settings, libvirt }) =>
      libvirt.unreachable === undefined
        ? judgeAppArmorPlace(settings.overlayDir, libvirt.models)
        : skip(NO_LIBVIRT),
  },
  { check: 'autostart', look: lookAtAutostart },
]
