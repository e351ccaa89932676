// Exports fail closed: the path in nbd-server's config is a symlink that exists only while its connection is a member of a
// frozen session. No hook, no link, no export.

import { mkdir, rm, symlink } from 'node:fs/promises'
import path from 'node:path'

/** Where the connection's link for a disk lies. @param connection id of ours, or `classic` */
export function linkPath(
  exportsDir: string,
  connection: string,
  domain: string,
  target: string,
): string {
  return path.join(exportsDir, connection, domain, target)
}

/** Points the link at the frozen base, replacing an older link. */
export async function makeLink(link: string, base: string): Promise<void> {
  await mkdir(path.dirname(link), { recursive: true, mode: 0o700 })
  await rm(link, { force: true })
  await symlink(base, link)
}

export async function removeLink(link: string): Promise<void> {
  await rm(link, { force: true })
}
