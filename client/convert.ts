// Between raw and qcow2, by qemu-img: what it will take, the conversion, and the proof that a guest sees the same bytes.

import { z } from 'zod'
import { Failure } from '../shared/failures.ts'
import { reasonOf, run, type RunResult } from '../shared/host/run.ts'
import type { DiskFormat } from '../shared/gate.ts'

export interface Image {
  readonly file: string
  readonly format: DiskFormat
}

const info = z.object({
  'backing-filename': z.string().optional(),
  encrypted: z.boolean().optional(),
  'format-specific': z
    .object({ data: z.object({ 'data-file': z.string().optional() }).optional() })
    .optional(),
})
const measure = z.object({ required: z.number().int().nonnegative() })

async function qemuImg(args: readonly string[], signal: AbortSignal): Promise<RunResult> {
  const result = await run('qemu-img', args, { signal, timeoutMs: 0, diesWithUs: true })
  if (result.exitCode !== 127) return result
  throw new Failure('USAGE', 'qemu-img is needed to convert images, and is not installed', {
    remedy: 'install qemu-utils (or qemu-img), or export without --format',
  })
}

/** Bytes that the converted image will take at most. @throws Failure UNSAFE when it is more than its own file; STANDBY_IO */
export async function measureImage(
  from: Image,
  to: DiskFormat,
  signal: AbortSignal,
): Promise<number> {
  await checkAlone(from, signal)
  const { file, format } = from
  const measured = await qemuImg(['measure', '--output=json', '-f', format, '-O', to, file], signal)
  if (measured.exitCode === 0) return measure.parse(JSON.parse(measured.stdout)).required
  throw new Failure('STANDBY_IO', `${file}: qemu-img measure: ${reasonOf(measured)}`)
}

/**
 * Converts an image into a new file. @throws Failure UNSAFE when it is more than its own file; SPACE or STANDBY_IO; INTEGRITY
 * when the result does not hold the same bytes
 */
export async function convertImage(from: Image, to: Image, signal: AbortSignal): Promise<void> {
  await checkAlone(from, signal)
  const formats = ['-f', from.format, '-O', to.format]
  const converted = await qemuImg(['convert', ...formats, from.file, to.file], signal)
  if (converted.exitCode !== 0) {
    const reason = reasonOf(converted)
    const code = /No space left|Disk quota exceeded/.test(reason) ? 'SPACE' : 'STANDBY_IO'
    throw new Failure(code, `${to.file}: qemu-img convert: ${reason}`)
  }
  const compared = await qemuImg(
    ['compare', '-f', from.format, '-F', to.format, from.file, to.file],
    signal,
  )
  if (compared.exitCode === 0) return
  const differs = compared.exitCode === 1
  throw new Failure(
    differs ? 'INTEGRITY' : 'STANDBY_IO',
    `${to.file}: qemu-img compare with ${from.file}: ${differs ? compared.stdout.trim() : reasonOf(compared)}`,
  )
}

/** A guest can write its own image's header, and name any file of this host in it. */
async function checkAlone({ file, format }: Image, signal: AbortSignal): Promise<void> {
  if (format === 'raw') return
  const asked = await qemuImg(['info', '--output=json', '-f', format, file], signal)
  if (asked.exitCode !== 0)
    throw new Failure('STANDBY_IO', `${file}: qemu-img info: ${reasonOf(asked)}`)
  const found = info.parse(JSON.parse(asked.stdout))
  const other = found['backing-filename'] ?? found['format-specific']?.data?.['data-file']
  const what =
    other !== undefined
      ? `needs another file, ${other}`
      : found.encrypted === true
        ? 'is encrypted'
        : undefined
  if (what !== undefined)
    throw new Failure('UNSAFE', `${file} ${what}, so it is not converted`, {
      remedy: 'export it without --format',
    })
}
