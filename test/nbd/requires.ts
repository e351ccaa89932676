// Tools that a test needs: missing on a laptop is a loud skip, missing in CI is a failure.

import { spawnSync } from 'node:child_process'

/** The value for tap's `skip`: false when every tool is there, else the reason. @throws in CI */
export function requires(...tools: readonly string[]): false | string {
  const missing = tools.filter(tool => spawnSync('which', [tool]).status !== 0)
  if (missing.length === 0) return false
  const reason = `needs ${missing.join(', ')}`
  if (process.env['CI']) throw new Error(`${reason}, and this is CI`)
  return reason
}
