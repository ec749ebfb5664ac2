# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
# Completion of the command cowsnap, for bash: it goes to /usr/share/bash-completion/completions/cowsnap.

# The descriptors of this shell that are regions, and those of others, as PID:FD.
_cowsnap_regions() {
	local link
	for link in "/proc/$$/fd/"* /proc/[0-9]*/fd/*; do
		case $(readlink "$link" 2>/dev/null) in
		/cowsnap\ \(deleted\) | /cowsnap:*\ \(deleted\)) ;;
		*) continue ;;
		esac
		link=${link#/proc/}
		[ "${link%%/*}" != $$ ] || printf '%s\n' "${link##*/}"
		printf '%s\n' "${link%%/*}:${link##*/}"
	done
}

_cowsnap() {
	local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} command=${COMP_WORDS[1]-} i
	COMPREPLY=()
	if [ "$COMP_CWORD" -eq 1 ]; then
		mapfile -t COMPREPLY < <(compgen -W 'ls stat top run fork fork-run diff save load send recv doctor bench --version --help' \
			-- "$word")
		return
	fi
	# Behind -- is a program, with what completes it.
	for ((i = 2; i < COMP_CWORD; i++)); do
		if [ "${COMP_WORDS[i]}" = -- ]; then
			if declare -F _command_offset >/dev/null; then
				_command_offset $((i + 1))
			else
				mapfile -t COMPREPLY < <(compgen -c -- "$word")
			fi
			return
		fi
	done
	case $before in
	--partial | --allocator)
		mapfile -t COMPREPLY < <(compgen -f -- "$word")
		return
		;;
	--name | --granule | --limit | --create | --interval | --count | --size | --from | --prepare) return ;;
	esac
	local options=--help
	case $command in
	ls | doctor) options+=' --json' ;;
	stat) options+=' --json' ;;
	top) options+=' --interval --count' ;;
	run) options+=' --create --name --granule --limit --region --' ;;
	fork) options+=' --snapshot --' ;;
	fork-run) options+=' --prepare --allocator --' ;;
	diff) options+=' --exact --json' ;;
	load) options+=' --into --name --granule --limit --' ;;
	send) options+=' -i --incremental --from' ;;
	recv) options+=' --partial --tell' ;;
	bench) options+=' --size --json' ;;
	esac
	if [[ $word = -* ]]; then
		mapfile -t COMPREPLY < <(compgen -W "$options" -- "$word")
		return
	fi
	case $command in
	stat | fork | diff | send | recv | save) mapfile -t COMPREPLY < <(compgen -W "$(_cowsnap_regions)" -- "$word") ;;
	esac
	case $command in
	fork-run) mapfile -t COMPREPLY < <(compgen -c -- "$word") ;;
	save | load) mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -f -- "$word") ;;
	esac
	case $before in
	--into | --region) mapfile -t COMPREPLY < <(compgen -W "$(_cowsnap_regions)" -- "$word") ;;
	esac
	# PID:FD is one word to the command, and two where the colon breaks words.
	if [ "$before" = : ] || [ "$word" = : ] && declare -F __ltrim_colon_completions >/dev/null; then
		__ltrim_colon_completions "$word"
	fi
}

complete -F _cowsnap cowsnap
