// recover without a domain: every journal of this source, each settled by serve and reported.

import { toFailure, worstExit, type Failure } from '../../shared/failures.ts'
import { failureJson } from '../../shared/help.ts'
import type { Paths } from '../config/paths.ts'
import { journaledDomains } from '../session/journal.ts'
import { askServe } from '../serve/client.ts'
import type { Result } from '../serve/words.ts'

const OPERATOR = { role: 'operator' } as const

export interface Recovered {
  readonly domain: string
  readonly result: Result<'operator.recover'>['result'] | Failure
}

/** Settles the journals of all domains, listed or not. @throws Failure SOURCE_UNREACHABLE when serve does not run */
export async function recoverAll({ serveSocket, journals }: Paths): Promise<Recovered[]> {
  // Asked first, so that "there is nothing to settle" is never said when nobody could have settled it.
  await askServe(serveSocket, OPERATOR, 'operator.status', {})
  const domains = await journaledDomains(journals)
  return Promise.all(
    domains.map(async domain => {
      try {
        const { result } = await askServe(serveSocket, OPERATOR, 'operator.recover', { domain })
        return { domain, result }
      } catch (error) {
        return { domain, result: toFailure(error) }
      }
    }),
  )
}

export function recoveredJson(recovered: readonly Recovered[]): object {
  const domains = recovered.map(({ domain, result }) =>
    typeof result === 'string' ? { domain, result } : { domain, failure: failureJson(result) },
  )
  return { domains, exit: recoveredExit(recovered) }
}

/** The worst of all domains. */
export function recoveredExit(recovered: readonly Recovered[]): number {
  return worstExit(recovered.map(({ result }) => (typeof result === 'string' ? 0 : result.exit)))
}

/** One line per domain; why one failed is told apart, on stderr. */
export function renderRecovered(recovered: readonly Recovered[]): string {
  if (recovered.length === 0) return 'nothing to do: this source has no journals'
  return recovered
    .map(({ domain, result }) =>
      typeof result === 'string'
        ? `${domain}: ${result}`
        : `${domain}: not recovered (exit ${result.exit})`,
    )
    .join('\n')
}
