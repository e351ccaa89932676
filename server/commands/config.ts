// config check, config show and config nbd-server.

import { z } from 'zod'
import { checkName } from '../../shared/names.ts'
import { effectiveSettings, sourceSchema, type SourceConfig } from '../config/schema.ts'
import { classicConfig, sectionsOf } from '../nbd-server/config.ts'
import { createDomains } from '../serve/domains.ts'
import { linkPath } from '../session/links.ts'
import type { Source } from '../source.ts'

/** Effective values of a domain with their origins, one row each. */
export function showDomain(
  config: SourceConfig,
  domain: string,
): { key: string; value: unknown; origin: string }[] {
  const { values, origins } = effectiveSettings(config, checkName('domain', domain))
  return Object.entries(origins).map(([key, origin]) => {
    let value: unknown = values
    for (const part of key.split('.')) value = (value as Record<string, unknown>)[part]
    return { key, value, origin }
  })
}

/** The fragment for the classic daemon: one section per disk, with the same hooks. */
export async function classicFragment(source: Source): Promise<string> {
  const domains = createDomains(source)
  const sections = await Promise.all(
    domains
      .all()
      .map(async ({ domain }) =>
        sectionsOf(domain, await domains.targets(domain), [], target =>
          linkPath(source.paths.exports, 'classic', domain, target),
        ),
      ),
  )
  return classicConfig(source.paths.serveSocket, sections.flat())
}

/** JSON Schema of source.yaml, for editors. */
export function sourceJsonSchema(): unknown {
  return z.toJSONSchema(sourceSchema, { io: 'input' })
}
