// Who holds which recovery point: advice for what to forget first. Never needed for correctness, so what is lost of it is lost.

import { mkdir, readFile } from 'node:fs/promises'
import path from 'node:path'
import { z } from 'zod'
import { writeDurably } from '../../shared/host/durable.ts'
import { isRecoveryPointId } from '../../shared/names.ts'
import type { Acknowledged } from './keep.ts'

const shape = z.record(z.string(), z.string().refine(isRecoveryPointId))

const fileOf = (directory: string, domain: string): string => path.join(directory, `${domain}.json`)

/** @param directory of all ledgers. @returns nothing acknowledged when there is none that can be read */
export async function readLedger(directory: string, domain: string): Promise<Acknowledged> {
  try {
    return shape.parse(JSON.parse(await readFile(fileOf(directory, domain), 'utf8')))
  } catch {
    return {}
  }
}

/** @throws the file system's errno error */
export async function acknowledgedBy(
  directory: string,
  domain: string,
  holder: string,
  point: string,
): Promise<Acknowledged> {
  const ledger = { ...(await readLedger(directory, domain)), [holder]: point }
  await mkdir(directory, { recursive: true, mode: 0o700 })
  await writeDurably(fileOf(directory, domain), `${JSON.stringify(ledger, undefined, 2)}\n`, 0o600)
  return ledger
}
