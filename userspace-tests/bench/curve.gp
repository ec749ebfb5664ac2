# SPDX-License-Identifier: GPL-2.0-only
# Draws one curve: gnuplot -e 'data="6.12-size.dat"; out="size.svg"; curve="size"; kernel="6.12"; unit="ns"' curve.gp
set terminal svg size 720,420 font 'sans-serif,13' background '#ffffff'
set output out
set logscale xy
set grid linecolor '#dddddd'
set key below horizontal
set border linecolor '#666666'
set ylabel unit
stats data using 1:2 nooutput

if (curve eq 'size') {
	set title sprintf('A fork, over the size of the memory (%s)', kernel)
	set xlabel 'MiB'
	set logscale x 4
}
if (curve eq 'dirty') {
	set title sprintf('A fork of 1 GiB, over the pages written since the last one (%s)', kernel)
	set xlabel 'pages written'
	set logscale x 8
}
if (curve eq 'depth') {
	set title sprintf('A page fault, over the generations of forks above (%s)', kernel)
	set xlabel 'generations'
	set yrange [100:10000]
}

plot for [i = 0:STATS_blocks - 1] data index i using 1:2 with linespoints linewidth 2 pointtype 7 pointsize 0.5 \
	title columnheader(1)
