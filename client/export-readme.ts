// README.txt of an exported folder: what it is, how to check it with coreutils, how to start the domain. Needs none of this.

import type { Generation } from './store/generation.ts'
import { imageName, manifestName } from './store/layout.ts'

const indented = (lines: readonly string[]): string => lines.map(line => `    ${line}`).join('\n')

/** Commands that each print nothing but OK, or fail, run in the folder. */
export function checkCommands({ disks }: Pick<Generation, 'disks'>): string[] {
  return disks.flatMap(disk => [
    `echo "${disk.digest}  ${manifestName(disk)}" | sha256sum -c`,
    `split -b 1M --filter='sha256sum | cut -c1-64' ${imageName(disk)} | cmp - ${manifestName(disk)}`,
  ])
}

/** @param from where it was exported: the clone's name */
export function readmeText(generation: Generation, from: string): string {
  const { domain, recoveryPoint, source, disks, nvram, networks, pools, omitted } = generation
  const say = (lines: readonly (string | false)[]): string =>
    lines.filter(line => line !== false).join('\n')
  return `${say([
    `Domain ${domain} (${source.domainUuid}) of host ${source.hostId}`,
    `as it was at ${recoveryPoint.instant} (${recoveryPoint.consistency}): recovery point ${recoveryPoint.id},`,
    `exported from the clone ${from}.`,
    '',
    'FILES',
    '',
    ...disks.map(disk => {
      const was = disk.convertedFrom
      const how = was ? `, converted from ${was.format} and compared` : ''
      return `  ${imageName(disk)}: disk ${disk.target}, ${disk.size} bytes, ${disk.format}${how}; ${manifestName(disk)}: a SHA-256 for each MiB`
    }),
    '  domain.xml: the definition, as on the source',
    generation.definition.live !== null && '  live.xml: the running domain, as on the source',
    nvram !== null && '  nvram.fd: its UEFI variables',
    '  generation.json: all of this for programs; the networks and pools that the domain names',
    ...omitted.map(({ target, reason }) => `  (not here: disk ${target}: ${reason})`),
    '',
    'CHECK IT',
    '',
    'In this folder. Each command is silent or says OK when all is well:',
    '',
    indented(checkCommands(generation)),
    '',
    'Copy it with: cp --archive --sparse=always; or rsync --archive --sparse.',
    '',
    'START IT',
    '',
    'Make sure first that the domain does not run anywhere else. A start writes to the images: this folder is then no copy of the',
    'recovery point any more, and the check above fails. Keep another copy if you need one.',
    '',
    '1. Edit a copy of domain.xml:',
    '',
    indented(['cp domain.xml start.xml']),
    '',
    ...disks.flatMap(disk => [
      `   The disk with <target dev='${disk.target}'> becomes: <disk type='file' ...>, in it <driver name='qemu' type='${disk.format}'/>`,
      `   and <source file='FOLDER/${imageName(disk)}'/>, where FOLDER is the absolute path of this one.`,
    ]),
    nvram !== null && '   Let <nvram> name a copy of nvram.fd.',
    ...omitted.map(
      ({ target }) => `   Remove the disk with <target dev='${target}'>, or give it media.`,
    ),
    networks.length > 0 &&
      `   Networks that must exist: ${networks.map(({ name }) => name).join(', ')}. See generation.json for their XML.`,
    pools.length > 0 &&
      `   Storage pools that it names: ${pools.map(({ name }) => name).join(', ')}. See generation.json for their XML.`,
    '',
    '2. Give the images to the user that QEMU runs as (libvirt-qemu on Debian, qemu on Fedora), define and start it:',
    '',
    indented(['chown -R libvirt-qemu: FOLDER', 'virsh define start.xml', `virsh start ${domain}`]),
    '',
    'SEED A CLONE WITH IT',
    '',
    'On a standby whose standby.yaml has the domain, and that has no generation of it yet:',
    '',
    indented([`clone import ${from} FOLDER`]),
  ])}\n`
}
