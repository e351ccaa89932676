// clone verify --history: whether history.jsonl is whole. Reads no image and takes no lock.

import type { CloneConfig } from '../config/effective.ts'
import { ofStore } from '../store/failure.ts'
import { checkHistory, type HistoryCheck } from '../store/history.ts'
import { layoutOf } from '../store/layout.ts'
import { readState } from '../store/state.ts'

export type VerifiedHistory = HistoryCheck & { readonly clone: string }

/** @throws Failure UNSAFE or STANDBY_IO when a file cannot be read */
export async function verifyHistoryCommand(clone: CloneConfig): Promise<VerifiedHistory> {
  const layout = layoutOf(clone.dir)
  // Before the history: an attempt is written there first, so one that ends meanwhile is no missing line.
  const { attempts } = await readState(layout)
  const check = await checkHistory(layout, attempts).catch((error: unknown) => {
    throw ofStore(clone.dir, error)
  })
  return { clone: clone.name, ...check }
}
