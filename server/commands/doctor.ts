// doctor as people read it.

import type { Diagnosis } from '../doctor/doctor.ts'
import type { Finding } from '../doctor/finding.ts'

const REMEDY_INDENT = ' '.repeat(8)

/** One line per finding below its subject, the remedy below that, and a last line that sums up. */
export function renderDiagnosis({ findings, exit }: Diagnosis): string {
  const width = Math.max(...findings.map(({ check }) => check.length))
  const subjects = [...new Set(findings.map(({ about }) => about))]
  const lines = subjects.flatMap(subject => [
    subject,
    ...findings.filter(({ about }) => about === subject).flatMap(one => renderFinding(one, width)),
  ])
  return [...lines, '', summary(findings, exit)].join('\n')
}

function renderFinding(finding: Finding, width: number): string[] {
  const { verdict, check, found, remedy, notes = [] } = finding
  const [first = '', ...more] = found.split('\n')
  const indent = ' '.repeat(width)
  return [
    `  ${verdict}  ${check.padEnd(width)}  ${first}`,
    ...more.map(line => `${REMEDY_INDENT}${indent}  ${line}`),
    ...notes.map(note => `${REMEDY_INDENT}${indent}  - ${note}`),
    ...(remedy === undefined
      ? []
      : remedy
          .split('\n')
          .map(
            (line, at) => `${REMEDY_INDENT}${indent}  ${at === 0 ? '-> ' : '   '}${line.trim()}`,
          )),
  ]
}

function summary(findings: readonly Finding[], exit: number): string {
  const count = (verdict: Finding['verdict']): number =>
    findings.filter(one => one.verdict === verdict).length
  const counts = [
    `${count('pass')} passed`,
    `${count('warn')} to look at`,
    `${count('fail')} failed`,
    ...(count('skip') > 0 ? [`${count('skip')} skipped`] : []),
  ]
  return `${counts.join(', ')}${exit === 0 ? '' : ` (exit ${exit})`}`
}
