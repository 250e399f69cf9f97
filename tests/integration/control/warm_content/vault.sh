#!/bin/sh
echo a password
