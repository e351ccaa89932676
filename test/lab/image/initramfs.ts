// The guest's operating system: an initramfs of busybox, the virtio modules, qemu-ga and the record writer.

import { cp, mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { execa } from 'execa'
import { Cleanup } from '../../../shared/cleanup.ts'
import { Failure } from '../../../shared/failures.ts'
import { script } from '../names.ts'

const MODULES = ['virtio_pci', 'virtio_blk', 'virtio_console', 'ext4']

/** The newest installed cloud kernel's version. */
export async function kernelVersion(): Promise<string> {
  const collator = new Intl.Collator('en', { numeric: true })
  const versions = (await readdir('/boot'))
    .filter(name => /^vmlinuz-.*-cloud-/.test(name))
    .map(name => name.slice('vmlinuz-'.length))
    .sort(collator.compare.bind(collator))
  const newest = versions.at(-1)
  if (newest === undefined)
    throw new Failure('INTERNAL', 'no cloud kernel in /boot; install linux-image-cloud-amd64')
  return newest
}

/** Builds the initramfs for that kernel. @param file where to write it */
export async function buildInitramfs(version: string, file: string): Promise<void> {
  await using cleanup = new Cleanup()
  const tree = await mkdtemp(join(tmpdir(), 'nbd-clone-initramfs-'))
  cleanup.defer(() => rm(tree, { recursive: true, force: true }))

  for (const directory of [
    'bin',
    'sbin',
    'usr/bin',
    'usr/sbin',
    'dev',
    'proc',
    'sys',
    'run',
    'tmp',
  ])
    await mkdir(join(tree, directory), { recursive: true })
  await mkdir(join(tree, 'data/a'), { recursive: true })
  await mkdir(join(tree, 'data/b'))
  await mkdir(join(tree, 'modules'))

  await cp('/bin/busybox', join(tree, 'bin/busybox'))
  await copyWithLibraries('/usr/sbin/qemu-ga', tree)
  const modules = await copyModules(version, tree)
  await writeFile(join(tree, 'modules/order'), modules.map(name => `${name}\n`).join(''))
  await cp(script('image/init.sh'), join(tree, 'init'))
  await cp(script('image/writer.sh'), join(tree, 'bin/writer'))
  await cp(script('image/shutdown.sh'), join(tree, 'sbin/shutdown'))
  await execa('chmod', ['755', 'init', 'bin/writer', 'sbin/shutdown'], { cwd: tree })
  await execa('sh', ['-c', 'find . | cpio --quiet -o -H newc | gzip -1 >"$1"', 'sh', file], {
    cwd: tree,
  })
}

async function copyWithLibraries(program: string, tree: string): Promise<void> {
  const { stdout } = await execa('ldd', [program])
  const libraries = [...stdout.matchAll(/(?:=> )?(\/\S+) \(0x/g)].map(match => match[1] ?? '')
  for (const path of [program, ...libraries]) {
    await mkdir(join(tree, dirname(path)), { recursive: true })
    await cp(path, join(tree, path), { dereference: true })
  }
}

/** @returns the modules' file names in loading order */
async function copyModules(version: string, tree: string): Promise<string[]> {
  const order = new Set<string>()
  for (const module of MODULES) {
    const { stdout } = await execa('modprobe', ['-S', version, '--show-depends', module])
    for (const match of stdout.matchAll(/^insmod (\S+)/gm)) order.add(match[1] ?? '')
  }
  const names: string[] = []
  for (const path of order) {
    const name = basename(path, '.xz')
    const plain = join(tree, 'modules', name)
    if (path.endsWith('.xz')) await execa('xz', ['-dc', path], { stdout: { file: plain } })
    else await cp(path, plain)
    names.push(name)
  }
  return names
}
